"""The reference pages: a file a kind, each with a function that returns Markdown (`docs/generate.py` writes them)."""
