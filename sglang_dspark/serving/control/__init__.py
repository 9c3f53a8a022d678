"""Switching the policy of a running server, and reading it back."""
