"""A SimPy model of SGLang's loop: replicas, admission, the decode batch, and the router in front of them."""
