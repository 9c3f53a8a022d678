"""Triton kernels for DSpark, each beside its torch reference. Needs torch and triton, nothing else.

A public function launches its kernel for CUDA tensors and computes its reference otherwise; inside
`interpreter.interpreted()` the kernel itself runs on CPU tensors. `choose` says which of two implementations a device
prefers, `philox` is the randomness that all of them share.
"""

from dspark_kernels.admission import Admission, admit
from dspark_kernels.markov import MarkovBlock, sample_markov_block
from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.markov_screening import MarkovBounds, markov_bounds
from dspark_kernels.rejection import draft_normaliser, verify
from dspark_kernels.rejection_reference import DraftLaw, Sampling, Verified
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
