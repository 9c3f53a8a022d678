"""What is asked for and how it is made: sizes, step counts, and the identity by which a saved pair is reused."""

import hashlib
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from sglang_dspark.demo.draft import HEADS
from sglang_dspark.demo.metrics import Sample
from sglang_dspark.demo.training import Schedule
from sglang_dspark.errors import InputError

GAMMA_RANGE = (1, 16)
MAX_THREADS = 64
_WEIGHT_SOURCES = (
    "structured.py",
    "corpus.py",
    "tokenizer.py",
    "draft.py",
    "pair.py",
    "training.py",
    "recipe.py",
    "metrics.py",
    "reference.py",
    "build.py",
)


@dataclass(frozen=True)
class Size:
    """Model widths, corpus and training budget of one size.

    Half of what the draft learns from are `own_rows` corpus windows that end in `own_tokens` tokens of the target's own
    (the paper's drafts learn from the target's answers).
    """

    hidden: int
    layers: int
    draft_layers: int
    rank: int
    vocab_size: int
    structured_documents: int
    python_files: int | None
    anchors: int
    own_rows: int
    own_tokens: int
    target: Schedule
    draft: Schedule
    sample: Sample


# Training windows by domain. Code is far harder than the rest, so it gets the most.
SHARES = {"python": 0.6, "json": 0.14, "csv": 0.13, "logs": 0.13}
PROMPTS_PER_DOMAIN = 64

SIZES = {
    "default": Size(
        hidden=192,
        layers=4,
        draft_layers=2,
        rank=48,
        vocab_size=1024,
        structured_documents=150,
        python_files=None,
        anchors=48,
        own_rows=96,
        own_tokens=128,
        target=Schedule(560, 6, 128, 5e-3, long_every=4),
        draft=Schedule(560, 2, 384, 5e-3),
        sample=Sample(6, 64),
    ),
    "ci": Size(
        hidden=128,
        layers=3,
        draft_layers=1,
        rank=32,
        vocab_size=1024,
        structured_documents=80,
        python_files=300,
        anchors=40,
        own_rows=128,
        own_tokens=128,
        target=Schedule(1000, 4, 96, 6e-3, long_every=4),
        draft=Schedule(700, 2, 384, 6e-3),
        sample=Sample(5, 48),
    ),
    "micro": Size(
        hidden=32,
        layers=3,
        draft_layers=1,
        rank=8,
        vocab_size=320,
        structured_documents=8,
        python_files=40,
        anchors=4,
        own_rows=4,
        own_tokens=16,
        target=Schedule(12, 2, 48, 5e-3, long_every=4),
        draft=Schedule(12, 2, 48, 5e-3),
        sample=Sample(1, 12),
    ),
}
"""`default` and `ci` serve; `micro` is untrained noise that exercises every step of the build in seconds."""


@dataclass(frozen=True)
class Request:
    """One asked-for pair. InputError where a field is out of range."""

    size: str = "default"
    head: str = "vanilla"
    gamma: int = 7
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        for name, value, known in (("size", self.size, tuple(SIZES)), ("head", self.head, HEADS)):
            if value not in known:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
        ranges = {"gamma": GAMMA_RANGE, "seed": (0, 2**31 - 1), "threads": (1, MAX_THREADS)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must lie between {low} and {high}")


def versions() -> dict[str, str]:
    """Versions that the weights depend on."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def recipe_hash() -> str:
    """SHA-256 of the sources that make a pair, so that a change of the recipe is a change of identity."""
    digest = hashlib.sha256()
    for name in _WEIGHT_SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:16]


def identity(request: Request) -> dict[str, object]:
    """What a saved pair must agree with to be reused for `request`."""
    return {"request": asdict(request), "versions": versions(), "recipe": recipe_hash()}
