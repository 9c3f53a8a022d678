"""Triton kernels for DSpark, each beside its torch reference. Needs torch and triton, nothing else."""
