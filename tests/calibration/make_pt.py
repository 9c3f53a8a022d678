"""torch.save's file layout, written by hand, so that the reader is tested where torch is not installed."""

import io
import pickle
import zipfile

import numpy as np


def shard_bytes(tensors, *, reduce_name="ctorch._utils\n_rebuild_tensor_v2\n", compression=zipfile.ZIP_STORED):
    """A .pt file of {name: float32 array}, opcode by opcode as torch 2 writes it."""
    out = io.BytesIO()
    out.write(b"\x80\x02}(")
    for key, (name, array) in enumerate(tensors.items()):
        out.write(_text(name) + reduce_name.encode() + b"(" + b"(" + _text("storage") + b"ctorch\nFloatStorage\n")
        out.write(_text(str(key)) + _text("cpu") + _int(array.size) + b"tQ" + _int(0))
        out.write(_tuple(array.shape) + _tuple([stride // 4 for stride in array.strides]) + b"\x89")
        out.write(b"ccollections\nOrderedDict\n)R" + b"tR")
    out.write(b"u.")
    return archive(
        {"data.pkl": out.getvalue()}
        | {f"data/{i}": array.astype("<f4").tobytes() for i, array in enumerate(tensors.values())},
        compression,
    )


def archive(members, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"shard/{name}", data)
    return out.getvalue()


def hostile(call, arguments):
    """A data.pkl that calls `module.name` when it is unpickled."""

    class Attack:
        def __reduce__(self):
            return call, arguments

    return [archive({"data.pkl": pickle.dumps({"logits": Attack()}, protocol)}) for protocol in (0, 2, 4)]


def sample(rows=300, gamma=7, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(1.0, 1.0, size=(rows, gamma)).astype(np.float32)
    depth = np.cumprod(rng.random((rows, gamma)) < 1 / (1 + np.exp(-logits)), axis=1).sum(axis=1)
    return logits, (np.arange(gamma) < depth[:, None]).astype(np.float32), depth


def _text(value):
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _int(value):
    return b"J" + int(value).to_bytes(4, "little", signed=True)


def _tuple(values):
    return b"(" + b"".join(map(_int, values)) + b"t"
