"""Search for a policy on a trace, and what its answer is worth: unseen draws, unseen requests, wrong assumptions."""
