"""Records as bytes: msgpack maps, packed into blocks that can be found and checked one by one.

A file is a sequence of blocks. A block is two zstd frames: a skippable one (marker, lengths, CRC-32 of the next one)
and a compressed one (one msgpack array of records). So `zstd -dc FILE` gives plain msgpack, a reader goes from block to
block, and after damage it finds the next block by its marker.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import zstandard

from sglang_dspark.records.schema import Record

MAX_BLOCK = 1 << 23
"""Largest block that is written or read, unpacked, in bytes: what decoding it can take is some fifty times that."""

MAX_RECORDS = 1 << 16
"""Most records of a block."""

_SKIPPABLE = 0x184D2A5D
_MARKER = b"\xd5\x9aDSPARK\x01"
_HEAD = struct.Struct("<II9sIII")  # frame magic, frame size, marker, packed bytes, unpacked bytes, CRC-32
_CHECK = struct.Struct("<I")  # CRC-32 of the head itself
HEAD_BYTES = _HEAD.size + _CHECK.size
MAGIC = struct.pack("<II", _SKIPPABLE, HEAD_BYTES - 8) + _MARKER
"""The first bytes of every block."""

_TYPES = ("<f4", "<f8", "<i2", "<i4", "<i8", "|u1", "|b1", "<u4")
_CODES = {np.dtype(name): code for code, name in enumerate(_TYPES)}
_TWO_DIMENSIONAL = 16
_COLUMNS = struct.Struct("<I")
_LIST, _LIST_KIND = struct.Struct(">BI"), 0xDD  # msgpack's array with a 32-bit count


_UNDECODABLE = (
    *(zstandard.ZstdError, msgspec.MsgspecError, struct.error),
    *(ValueError, IndexError, TypeError, RecursionError),
)


class BlockFault(Exception):
    """A block that cannot be used; the text says why."""


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        code = _CODES.get(value.dtype)
        if code is None or value.ndim not in (1, 2):
            raise TypeError(f"arrays of {value.dtype} {list(value.shape)} are not recorded")
        if value.ndim == 1:
            return msgspec.msgpack.Ext(code, value.tobytes())
        return msgspec.msgpack.Ext(code | _TWO_DIMENSIONAL, _COLUMNS.pack(value.shape[1]) + value.tobytes())
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not recorded")


def _decode_array(code: int, data: memoryview) -> np.ndarray:
    dtype = np.dtype(_TYPES[code & ~_TWO_DIMENSIONAL])
    if not code & _TWO_DIMENSIONAL:
        return np.frombuffer(data, dtype)
    return np.frombuffer(data, dtype, offset=_COLUMNS.size).reshape(-1, _COLUMNS.unpack_from(data)[0])


def _as_array(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    raise ValueError(f"expected an array, got {type(value).__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_decoder = msgspec.msgpack.Decoder(list[Record], dec_hook=_as_array, ext_hook=_decode_array)


def encode_record(record: Record) -> bytes:
    """One record as msgpack: a snapshot, arrays included."""
    return _encoder.encode(record)


def pack_block(records: list[bytes], compressor: zstandard.ZstdCompressor) -> bytes:
    """A block of encoded records, ready to append to a file."""
    plain = _LIST.pack(_LIST_KIND, len(records)) + b"".join(records)
    packed = compressor.compress(plain)
    head = _HEAD.pack(_SKIPPABLE, HEAD_BYTES - 8, _MARKER, len(packed), len(plain), zlib.crc32(packed))
    return head + _CHECK.pack(zlib.crc32(head)) + packed


def read_head(data: bytes) -> tuple[int, int, int]:
    """(packed bytes, unpacked bytes, CRC-32) of the block that starts with `data`; BlockFault if none starts here."""
    if len(data) < HEAD_BYTES:
        raise BlockFault("the file ends inside a block's head")
    if not data.startswith(MAGIC) or zlib.crc32(data[: _HEAD.size]) != _CHECK.unpack_from(data, _HEAD.size)[0]:
        raise BlockFault("no block starts here")
    packed, plain, crc = _HEAD.unpack_from(data)[3:]
    if max(packed, plain) > MAX_BLOCK:
        raise BlockFault(f"a block of {max(packed, plain)} bytes, expected at most {MAX_BLOCK}")
    return packed, plain, crc


def unpack_block(packed: bytes, plain_bytes: int, crc: int) -> list[Record]:
    """The records of a block; BlockFault if anything does not fit."""
    if zlib.crc32(packed) != crc:
        raise BlockFault("the checksum does not match")
    try:
        # A frame that states its own size is unpacked to that size, whatever limit is given.
        stated = zstandard.frame_content_size(packed)
        if stated not in (-1, plain_bytes):
            raise BlockFault(f"its frame unpacks to {stated} bytes, expected {plain_bytes}")
        plain = zstandard.ZstdDecompressor(max_window_size=MAX_BLOCK).decompress(packed, max_output_size=plain_bytes)
        if len(plain) != plain_bytes:
            raise BlockFault(f"unpacks to {len(plain)} bytes, expected {plain_bytes}")
        kind, count = _LIST.unpack_from(plain)
        if kind != _LIST_KIND or count > MAX_RECORDS:
            raise BlockFault(f"holds no list of at most {MAX_RECORDS} records")
        return _decoder.decode(plain)
    except _UNDECODABLE as error:
        raise BlockFault(f"cannot be decoded: {error}") from error
