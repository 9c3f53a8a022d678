"""SGLang's STS shards (`SGLANG_DSPARK_STS_COLLECT_PATH`, torch.save files) without torch and without running them.

A `.pt` file is a zip with a pickle that names tensors and raw little-endian storages. The pickle is checked opcode by
opcode before anything is built, and may call nothing but the two stand-ins below.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.errors import InputError

_MAX_PICKLE = 1 << 16
_MAX_STORAGE = 1 << 32
# What torch.save writes for a dict of tensors. No BUILD, INST, OBJ, NEWOBJ, EXT or STACK_GLOBAL.
_OPCODES = {
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "EMPTY_DICT",
    "EMPTY_TUPLE",
    "EMPTY_LIST",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "NEWTRUE",
    "NEWFALSE",
    "NONE",
    "BINPUT",
    "LONG_BINPUT",
    "BINGET",
    "LONG_BINGET",
    "MEMOIZE",
    "SETITEM",
    "SETITEMS",
    "GLOBAL",
    "REDUCE",
    "BINPERSID",
}


@dataclass(frozen=True)
class Shards:
    """N rows of STS data. logits: [N, gamma] float32, raw. depth: [N] int64 correct draft tokens."""

    logits: np.ndarray
    depth: np.ndarray


def read_shards(paths: Iterable[Path]) -> Shards:
    """The rows of all shards; InputError names the file that does not fit."""
    logits: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    for path in paths:
        rows, mask = _read_shard(path)
        if logits and logits[0].shape[1] != rows.shape[1]:
            raise InputError(f"shard {path}: gamma {rows.shape[1]}, expected {logits[0].shape[1]} as in the first")
        logits.append(rows)
        depths.append(mask.sum(axis=1).astype(np.int64))
    if not logits:
        raise InputError("no STS shards given, expected .pt files")
    return Shards(np.concatenate(logits), np.concatenate(depths))


def _read_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Tensors(archive, path).load()
    except OSError as error:
        raise InputError(f"shard {path}: {error.strerror}") from error
    except InputError:
        raise
    except Exception as error:  # zipfile and pickle meet damage with any exception
        raise InputError(f"shard {path}: {error}, expected a torch.save file") from error
    logits, mask = (content.get(name) if isinstance(content, dict) else None for name in ("logits", "prefix_mask"))
    if not isinstance(logits, np.ndarray) or not isinstance(mask, np.ndarray):
        raise InputError(f"shard {path}: expected tensors 'logits' and 'prefix_mask'")
    if logits.ndim != 2 or logits.shape != mask.shape or not 1 <= logits.shape[1] <= 64:
        raise InputError(f"shard {path}: shapes {list(logits.shape)} and {list(mask.shape)}, expected [n, gamma] twice")
    if not np.isfinite(logits).all() or not np.isin(mask, (0.0, 1.0)).all() or (np.diff(mask, axis=1) > 0).any():
        raise InputError(f"shard {path}: expected finite logits and a prefix mask of ones, then zeros")
    return logits.astype(np.float32), mask


class _Tensors:
    """Builds arrays from one archive."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise InputError(f"shard {path}: expected one data.pkl inside, found {len(names)}")
        self._folder = names[0].removesuffix("data.pkl")

    def load(self) -> Any:
        data = self._member("data.pkl", _MAX_PICKLE)
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                raise self.refusal(f"pickle opcode {opcode.name} {argument or ''}".strip())
        return _Unpickler(data, self).load()

    def storage(self, name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """A raw storage as a flat array."""
        if not name.isalnum():
            raise self.refusal(f"storage {name!r}")
        data = self._member(f"data/{name}", _MAX_STORAGE)
        if len(data) != count * dtype.itemsize:
            raise InputError(f"shard {self._path}: storage {name} has {len(data)} bytes, expected {count} values")
        return np.frombuffer(data, dtype)

    def _member(self, name: str, limit: int) -> bytes:
        try:
            info = self._archive.getinfo(self._folder + name)
        except KeyError:
            raise InputError(f"shard {self._path}: {name} is missing") from None
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
            raise self.refusal(f"{name} of {info.file_size} bytes, compressed or over {limit}")
        return self._archive.read(info)

    def refusal(self, what: str) -> InputError:
        """The error for a file that wants more than tensors."""
        return InputError(f"shard {self._path}: holds more than tensors ({what}), it is refused")


class _Unpickler(pickle.Unpickler):
    """Resolves three names, none of them to the code of that name."""

    def __init__(self, data: bytes, tensors: _Tensors) -> None:
        super().__init__(io.BytesIO(data))
        self._tensors = tensors

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return _no_hooks
        if (module, name) in (("torch", "FloatStorage"), ("torch.storage", "UntypedStorage")):
            return name
        raise self._tensors.refusal(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, name, device, count = pid
        if (kind, storage, device) != ("storage", "FloatStorage", "cpu") or not isinstance(count, int):
            raise self._tensors.refusal(f"storage of {storage} on {device}, expected float32 on cpu")
        return self._tensors.storage(str(name), np.dtype("<f4"), count)


def _no_hooks() -> None:
    """Stands for the empty OrderedDict of backward hooks."""


def _rebuild(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A tensor from its storage; any layout that leaves the storage is a ValueError."""
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise ValueError(f"tensor of size {size}, stride {stride}, offset {offset}")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= storage.size or math.prod(size) > storage.size):
        raise ValueError(f"tensor of size {size} reaches beyond its storage of {storage.size}")
    if 0 in size:
        return np.empty(size, dtype=np.float32)
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False).copy()
