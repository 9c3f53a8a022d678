"""What is asked for and how it is made: sizes, step counts, and the identity that decides whether a pair can be reused."""

import hashlib
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from sglang_dspark.demo.metrics import Sample
from sglang_dspark.demo.training import Schedule
from sglang_dspark.errors import InputError

HEADS = ("vanilla", "gated", "rnn")
GAMMA_RANGE = (1, 16)
MAX_THREADS = 64
_WEIGHT_SOURCES = ("structured.py", "corpus.py", "tokenizer.py", "draft.py", "pair.py", "training.py", "recipe.py",
                   "metrics.py", "reference.py", "build.py")


@dataclass(frozen=True)
class Size:
    """Model widths, corpus and training budget of one size; `shares` is the mix of training windows by domain."""

    hidden: int
    layers: int
    draft_layers: int
    rank: int
    vocab_size: int
    structured_documents: int
    python_files: int | None
    anchors: int
    target: Schedule
    draft: Schedule
    sample: Sample


SHARES = {"python": 0.55, "json": 0.15, "csv": 0.15, "logs": 0.15}
PROMPTS_PER_DOMAIN = 64

SIZES = {
    "default": Size(
        hidden=192, layers=4, draft_layers=2, rank=48, vocab_size=1024, structured_documents=500, python_files=None,
        anchors=32, target=Schedule(700, 6, 256, 4e-3), draft=Schedule(450, 6, 256, 4e-3), sample=Sample(12, 96),
    ),
    "ci": Size(
        hidden=128, layers=4, draft_layers=2, rank=32, vocab_size=1024, structured_documents=200, python_files=400,
        anchors=24, target=Schedule(450, 4, 256, 5e-3), draft=Schedule(300, 4, 256, 5e-3), sample=Sample(8, 64),
    ),
    "micro": Size(
        hidden=32, layers=3, draft_layers=1, rank=8, vocab_size=320, structured_documents=16, python_files=60,
        anchors=4, target=Schedule(12, 2, 48, 5e-3), draft=Schedule(12, 2, 48, 5e-3), sample=Sample(1, 12),
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
