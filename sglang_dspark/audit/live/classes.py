"""Token classes: the tokens that the target makes frequent at a position stand alone, the rare ones share a class.

Classes are chosen from the target's laws given the prefixes, never from the tokens under test, so that choosing them
does not disturb the test.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_EXPECTED = 10.0
"""Expected count below which a token is rare: the limit laws need about that many."""
MOST_CLASSES = 12
"""More classes see finer shifts and need more samples."""


def frequent_tokens(mean_law: Floats, samples: int) -> Ints:
    """Tokens with a class of their own at one position, most frequent first; every other token is in the last class.

    mean_law: [V], the samples' laws averaged. When the rare tokens together are too rare for a class, the last frequent
    token joins them; a position where fewer than two classes remain tells nothing.
    """
    expected = mean_law * samples
    candidates = np.argsort(-expected, kind="stable")[: MOST_CLASSES - 1]
    chosen = candidates[expected[candidates] >= LEAST_EXPECTED]
    rest = samples - float(expected[chosen].sum())
    if chosen.size and rest < LEAST_EXPECTED:
        chosen = chosen[:-1]
    return chosen.astype(np.int64)


def class_laws(laws: Floats, frequent: Ints) -> Floats:
    """Class probabilities [n, classes] of laws [n, V], the rare class last."""
    alone = laws[:, frequent]
    return np.concatenate([alone, np.clip(1.0 - alone.sum(1, keepdims=True), 0.0, 1.0)], axis=1)


def class_of(tokens: Ints, frequent: Ints) -> Ints:
    """Class numbers [n] of tokens [n]."""
    rare = np.ones((len(tokens), 1), dtype=bool)
    return np.concatenate([tokens[:, None] == frequent[None, :], rare], axis=1).argmax(1)
