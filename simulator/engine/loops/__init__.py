"""Runs of decode steps as compiled code; `sglang_dspark.jit` says whether it is used. `layout` needs no numba."""
