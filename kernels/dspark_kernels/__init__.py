"""Triton kernels for DSpark, each beside its torch reference. Needs torch and triton, nothing else.

A public function launches its kernel for CUDA tensors and computes its reference otherwise; inside
`interpreter.interpreted()` the kernel itself runs on CPU tensors. `choose` says which of two implementations a device
prefers, `philox` is the randomness that all of them share.
"""

from dspark_kernels.admission import admit
from dspark_kernels.admission_reference import Admission
from dspark_kernels.markov import sample_markov_block
from dspark_kernels.markov_bounds import MarkovBounds, markov_bounds
from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.markov_reference import MarkovBlock
from dspark_kernels.rejection import verify
from dspark_kernels.rejection_reference import DraftLaw, Sampling, Verified
from dspark_kernels.rejection_statistics import draft_normaliser
from dspark_kernels.survival import Confidence, confidence_survival, survival_units

__all__ = [
    "Admission",
    "Confidence",
    "DraftLaw",
    "MarkovBlock",
    "MarkovBounds",
    "MarkovHead",
    "Sampling",
    "Verified",
    "admit",
    "confidence_survival",
    "draft_normaliser",
    "markov_bounds",
    "sample_markov_block",
    "survival_units",
    "verify",
]
