"""What the demo pair is trained on: the running Python's standard library and generated structured text."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from random import Random

from sglang_dspark.demo.structured import GENERATORS, documents
from sglang_dspark.errors import InputError

DOMAINS = ("python", *GENERATORS)
"""Domain names, in the order in which they are reported."""

_SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "encodings", "pydoc_data", "__pycache__"})
_HOLD_OUT_EVERY = 20
_HELD_OUT_SEED, _TRAINING_SEED = 1, 0
_PROMPT_LINES = {"python": (6, 16), "json": (12, 30), "csv": (4, 9), "logs": (3, 7)}


@dataclass(frozen=True)
class Corpus:
    """Documents by domain; `held_out` shares no file and no generated document with `training`."""

    training: dict[str, list[str]]
    held_out: dict[str, list[str]]


def _standard_library(limit: int | None) -> list[str]:
    """Source text of the standard library's modules in path order, without its tests and tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files[:limit]]
    if len(texts) < 2 * _HOLD_OUT_EVERY:
        raise InputError(
            f"the standard library at {root} has {len(texts)} Python source files; at least "
            f"{2 * _HOLD_OUT_EVERY} are needed to train the demo pair"
        )
    return texts


def load_corpus(structured_documents: int, python_files: int | None = None) -> Corpus:
    """The corpus with `structured_documents` training documents per generated domain (and a tenth of that held out).

    Every 20th standard library file is held out. `python_files` limits the files read (tests).
    Raises InputError where the standard library's sources are not on disk.
    """
    sources = _standard_library(python_files)
    training = {"python": [text for i, text in enumerate(sources) if i % _HOLD_OUT_EVERY]}
    held_out = {"python": sources[::_HOLD_OUT_EVERY]}
    for domain in GENERATORS:
        training[domain] = documents(domain, structured_documents, _TRAINING_SEED)
        held_out[domain] = documents(domain, max(8, structured_documents // 10), _HELD_OUT_SEED)
    return Corpus(training, held_out)


def held_out_prompts(corpus: Corpus, domain: str, count: int) -> list[str]:
    """`count` prompts of a few whole lines (ASCII only) from random places of held-out documents."""
    rng = Random(f"prompts/{domain}")
    low, high = _PROMPT_LINES[domain]
    candidates = [text.splitlines() for text in corpus.held_out[domain] if text.isascii()]
    candidates = [lines for lines in candidates if len(lines) > high]
    prompts: list[str] = []
    while len(prompts) < count:
        lines, length = rng.choice(candidates), rng.randrange(low, high)
        start = rng.randrange(len(lines) - length)
        prompt = "\n".join(lines[start : start + length]) + "\n"
        if 100 <= len(prompt) <= 1200 and prompt not in prompts:
            prompts.append(prompt)
    return prompts
