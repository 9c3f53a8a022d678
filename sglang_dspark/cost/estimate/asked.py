"""What an estimate is asked for, and the text `estimate:GPU/MODEL,key=value,...` that asks for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from sglang_dspark.errors import InputError

PREFIX = "estimate:"
DATA = ("silicon", "hybrid")
EXAMPLE = "estimate:h100_sxm/Qwen3-8B,tp=2,gemm=fp8_block"

_KEYS = ("tp", "ep", "gemm", "moe", "kv", "draft", "gamma", "data", "anchor")
_LARGEST_GAMMA = 64


@dataclass(frozen=True)
class Anchor:
    """A measured decode step without speculation: `seconds` at `requests` in flight (bench_serving's mean TPOT)."""

    requests: int
    seconds: float

    @classmethod
    def of(cls, text: str) -> Anchor:
        """`REQUESTS:MS`; InputError for anything else."""
        requests, _, milliseconds = text.partition(":")
        try:
            anchor = cls(int(requests), float(milliseconds) / 1e3)
        except ValueError:
            anchor = cls(0, math.nan)
        if not 1 <= anchor.requests <= 4096 or not 1e-5 <= anchor.seconds <= 10:
            raise InputError(
                f"anchor '{text}' is refused, expected REQUESTS:MILLISECONDS such as 4:7.04, 1..4096 requests and "
                "0.01..10000 ms"
            )
        return anchor

    @property
    def text(self) -> str:
        """As it is given."""
        return f"{self.requests}:{1e3 * self.seconds:g}"


@dataclass(frozen=True)
class Asked:
    """One estimate. gpu, model, gemm, moe, kv: the library's names (`dspark profile --estimate --list`).

    model: a name or a folder with a config.json. tp, ep: tensor- and expert-parallel sizes. gemm, moe: precisions; None
    as the checkpoint has it. kv: precision of the KV cache; None as SGLang resolves it, bfloat16 (DeepSeek-V4: fp8).
    draft: folder or name of the draft model; None: an assumed one, which the profile states. gamma: draft block size;
    None: the draft's own, else 7. data: see `Forward`. anchors: measured steps to scale to.
    """

    gpu: str
    model: str
    tp: int = 1
    ep: int = 1
    gemm: str | None = None
    moe: str | None = None
    kv: str | None = None
    draft: str | None = None
    gamma: int | None = None
    data: str = "silicon"
    anchors: tuple[Anchor, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.tp <= 64 or not 1 <= self.ep <= 64 or self.tp % self.ep:
            raise InputError(f"tp={self.tp}, ep={self.ep} is refused, expected 1..64 ranks, and an ep that divides tp")
        if self.gamma is not None and not 1 <= self.gamma <= _LARGEST_GAMMA:
            raise InputError(f"gamma={self.gamma} is refused, expected 1..{_LARGEST_GAMMA}")
        if self.data not in DATA:
            raise InputError(f"data={self.data} is refused, expected {' or '.join(DATA)}")
        counts = [anchor.requests for anchor in self.anchors]
        if len(set(counts)) < len(counts):
            raise InputError(f"anchors {' '.join(a.text for a in self.anchors)} are refused: two at one batch size")
        object.__setattr__(self, "anchors", tuple(sorted(self.anchors, key=lambda anchor: anchor.requests)))

    @classmethod
    def of(cls, text: str) -> Asked:
        """`estimate:GPU/MODEL[,key=value...]`; an anchor may come more than once. Errors: InputError."""
        body = text.removeprefix(PREFIX)
        target, *items = body.split(",")
        gpu, slash, model = target.partition("/")
        if not gpu or not slash or not model:
            raise InputError(f"profile '{text}' is refused, expected estimate:GPU/MODEL, such as {EXAMPLE}")
        asked = cls(gpu, model)
        given: set[str] = set()
        for item in items:
            key, equals, value = item.partition("=")
            if key not in _KEYS or not equals or not value:
                raise InputError(
                    f"profile '{text}': '{item}' is refused, expected {', '.join(_KEYS)}, each as key=value"
                )
            if key in given and key != "anchor":
                raise InputError(f"profile '{text}': '{key}' is given twice")
            given.add(key)
            asked = _with(asked, key, value, text)
        return asked

    @property
    def text(self) -> str:
        """The shortest text that asks for the same."""
        parts = [f"{PREFIX}{self.gpu}/{self.model}"]
        for field in fields(self)[2:-1]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={value}")
        return ",".join([*parts, *(f"anchor={anchor.text}" for anchor in self.anchors)])


def is_estimate(name: str) -> bool:
    """Whether a profile name asks for an estimate."""
    return name.startswith(PREFIX)


def _with(asked: Asked, key: str, value: str, text: str) -> Asked:
    if key == "anchor":
        return replace(asked, anchors=(*asked.anchors, Anchor.of(value)))
    if key in ("gemm", "moe", "kv", "draft", "data"):
        return replace(asked, **{key: value})  # type: ignore[arg-type]
    try:
        number = int(value)
    except ValueError:
        raise InputError(f"profile '{text}': {key}='{value}' is refused, expected an integer") from None
    return replace(asked, **{key: number})  # type: ignore[arg-type]
