"""Statistical audit of a running server: does it sample from the target's law?

`audit.audit_server` asks a live server for continuations, computes the target's exact law after every sampled prefix
and tests one against the other; `prediction.predict` tells beforehand how large a policy's bias would be and how many
samples see it. Needs the extra `audit` (httpx, torch, transformers), or `serve`, which brings them.
"""
