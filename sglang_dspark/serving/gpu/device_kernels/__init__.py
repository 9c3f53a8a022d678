"""Our kernels in SGLang's DSPARK worker, where they are faster on this device.

`choice.measure` (once, on the rank that decides) times each operation beside upstream's at the shapes that will be
served; `choice.install` puts the winners in place and returns what undoes it. Call both before the draft's CUDA graphs
are captured. `operations` and `live` import without SGLang; `choice`, which replaces SGLang's functions, does not.
"""
