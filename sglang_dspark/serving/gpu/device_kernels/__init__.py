"""Our kernels in SGLang's DSPARK worker, where they are faster on this device.

`measure` (once, on the rank that decides) times each operation beside upstream's at the shapes that will be served;
`install` puts the winners in place and returns what undoes it. Call both before the draft's CUDA graphs are captured.
"""

from sglang_dspark.serving.gpu.device_kernels.choice import OPERATIONS, install, measure

__all__ = ["OPERATIONS", "install", "measure"]
