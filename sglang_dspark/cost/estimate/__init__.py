"""Step costs of a GPU and model that nobody has measured yet, out of a library's kernel times (extra `estimate`).

`table.estimate_table(asked.Asked.of("estimate:h100_sxm/Qwen3-8B,gemm=fp8_block"))` is a profile like any other, which
says that it is an estimate. Loading one needs neither the library nor anything slow to import.
"""
