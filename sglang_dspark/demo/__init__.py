"""The demo pair: a tiny Qwen3 target and a DSpark draft, trained in minutes on a CPU, for machines without a GPU.

`dspark demo-model --out DIR` makes it (`build`); `reference` decodes with it in plain PyTorch, exactly, and is what a
served pair is compared with. The modules here need torch and transformers (extra `serve`), `structured` and `corpus` do
not.
"""
