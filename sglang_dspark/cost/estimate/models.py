"""Target and draft by name or folder: which config.json is priced. No name is ever looked up on the network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_dspark.cost.estimate import library
from sglang_dspark.errors import InputError

ASSUMED_GAMMA = 7
ASSUMED_LAYERS, ASSUMED_FEATURES, ASSUMED_RANK = 5, 5, 256

_DEEPSEEK_V4 = "DeepseekV4ForCausalLM"
_DENSE = "Qwen3ForCausalLM"

# Public config.json values of models with published DSpark drafts that the library does not hold:
# (layers, hidden size, intermediate size, query heads, KV heads, tied embeddings).
_OURS = {
    "Qwen/Qwen3-4B": (36, 2560, 9728, 32, 8, True),
    "Qwen/Qwen3-14B": (40, 5120, 17408, 40, 8, False),
}


@dataclass(frozen=True)
class Model:
    """A model that can be priced: `source` as `Forward` takes it, or the content of a config.json in `config`."""

    name: str
    source: str
    config: dict[str, Any] | None
    facts: dict[str, Any]

    @property
    def is_deepseek_v4(self) -> bool:
        """Whether it is one: its KV cache is fp8, and its draft consists of layers of its own kind."""
        return self.facts["architecture"] == _DEEPSEEK_V4

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return bool(self.facts.get("num_experts"))


@dataclass(frozen=True)
class Draft:
    """A DSpark draft: its backbone, and the heads on it.

    config: a dense backbone's config.json, without it `layers` of the target's own kind. features: hidden states of the
    target that it reads. rank: of the Markov head. words: what is assumed or given, for people.
    """

    layers: int
    config: dict[str, Any] | None
    features: int
    rank: int
    gamma: int
    assumed: bool
    words: str


def known_models() -> list[str]:
    """Every name that an estimate takes."""
    return sorted({*library.model_names(), *_OURS})


def find_model(name: str) -> Model:
    """A model by name (with or without its owner) or folder. Errors: InputError lists what exists."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        _read_config(folder)
        return Model(folder.resolve().name, str(folder), None, library.facts_of(str(folder)))
    found = _named(name, known_models())
    if found is None:
        raise InputError(
            f"unknown model '{name}', expected a folder with a config.json or one of {', '.join(known_models())}"
        )
    short = found.rpartition("/")[2]
    if found in _OURS:
        config = _config_of(found)
        text = config["text"]
        return Model(short, found, text, {**config["facts"], "raw_config": text})
    return Model(short, found, None, library.facts_of(found))


def find_draft(name: str | None, target: Model, gamma: int | None) -> Draft:
    """The draft by folder or name, or the one that is assumed for a target. Errors: InputError."""
    if name is None:
        return _assumed(target, gamma or ASSUMED_GAMMA)
    folder = Path(name).expanduser()
    config = _read_config(folder) if folder.is_dir() else _raw_config(find_model(name))
    return _given(folder.resolve().name if folder.is_dir() else name, config, gamma)


def _assumed(target: Model, gamma: int) -> Draft:
    """DeepSpec's rule: five dense layers of the target's geometry; of DeepSeek-V4 five layers of its own kind."""
    facts = target.facts
    if target.is_deepseek_v4:
        words = f"{ASSUMED_LAYERS} layers of the target's own kind over a window, Markov head of rank "
        words += f"{ASSUMED_RANK}, gamma {gamma}"
        return Draft(ASSUMED_LAYERS, None, ASSUMED_FEATURES, ASSUMED_RANK, gamma, True, words)
    hidden = int(facts["hidden_size"])
    if target.has_experts or facts.get("n_kv", 0) in (0, facts["n"]) or not facts.get("inter_size"):
        # As wide as the published dense draft of a large mixture of experts (Kimi-K3's), with Qwen3-8B's heads.
        shape = {"n": 32, "n_kv": 8, "d": 128, "inter": 2 * hidden}
        like = "dense layers as wide as the target"
    else:
        shape = {"n": facts["n"], "n_kv": facts["n_kv"], "d": facts["d"], "inter": facts["inter_size"]}
        like = "layers of the target's geometry"
    config = _dense(ASSUMED_LAYERS, hidden, shape["inter"], shape["n"], shape["n_kv"], shape["d"], facts["vocab"])
    words = f"{ASSUMED_LAYERS} {like} in bfloat16, Markov head of rank {ASSUMED_RANK}, gamma {gamma}"
    return Draft(ASSUMED_LAYERS, config, ASSUMED_FEATURES, ASSUMED_RANK, gamma, True, words)


def _given(name: str, config: dict[str, Any], gamma: int | None) -> Draft:
    """A dense draft by the numbers of its config.json."""
    nested = config.get("dspark_config") or config.get("dflash_config") or {}
    merged = {**config, **(nested if isinstance(nested, dict) else {})}
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    values = {key: merged.get(key) for key in keys}
    missing = [key for key, value in values.items() if not _is_count(value)]
    if missing or merged.get("n_routed_experts") or merged.get("num_experts"):
        why = f"its config.json has no {', '.join(missing)}" if missing else "it has experts"
        raise InputError(f"draft '{name}' has no estimate: {why}; expected a dense draft such as DeepSpec exports")
    layers, hidden, inter, heads, vocab = (int(values[key] or 0) for key in keys)
    kv_heads = int(merged.get("num_key_value_heads") or heads)
    width = int(merged.get("head_dim") or hidden // heads)
    block = merged.get("block_size")
    gamma = gamma or (int(block or 0) if _is_count(block) else ASSUMED_GAMMA)
    features = merged.get("target_layer_ids")
    rank = int(merged.get("markov_rank") or 0)
    count = len(features) if isinstance(features, list) and features else ASSUMED_FEATURES
    words = f"{name}: {layers} layers in bfloat16, Markov head of rank {rank}, gamma {gamma}"
    dense = _dense(layers, hidden, inter, heads, kv_heads, width, vocab)
    return Draft(layers, dense, count, rank, gamma, False, words)


def _dense(layers: int, hidden: int, inter: int, heads: int, kv_heads: int, width: int, vocab: int) -> dict[str, Any]:
    return {
        "architectures": [_DENSE],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
        "vocab_size": vocab,
        "max_position_embeddings": 40960,
    }


def _config_of(name: str) -> dict[str, dict[str, Any]]:
    layers, hidden, inter, heads, kv_heads, tied = _OURS[name]
    text = {**_dense(layers, hidden, inter, heads, kv_heads, 128, 151936), "tie_word_embeddings": tied}
    facts = {"architecture": _DENSE, "layers": layers, "n": heads, "n_kv": kv_heads, "d": 128, "hidden_size": hidden}
    return {"text": text, "facts": {**facts, "inter_size": inter, "vocab": 151936, "num_experts": 0}}


def _raw_config(model: Model) -> dict[str, Any]:
    return dict(model.config or model.facts["raw_config"])


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{folder} is no model: {path.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or not config.get("architectures"):
        raise InputError(f"{path} is no model's config: it names no architectures")
    return config


def _named(name: str, known: Iterable[str]) -> str | None:
    wanted = name.lower()
    exact = [each for each in known if each.lower() == wanted]
    short = [each for each in known if each.lower().rpartition("/")[2] == wanted]
    return next(iter(exact or short), None)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
