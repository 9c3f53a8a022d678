"""DSpark speculative decoding for SGLang: policies, step costs, audits and the serving plug-in.

Importing this package imports neither torch nor sglang; only `sglang_dspark.serving` and
`sglang_dspark.demo` need them.
"""

__version__ = "0.1.0"
