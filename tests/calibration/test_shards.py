"""SGLang's STS shards are read as tensors and nothing else."""

import io
import os
import zipfile

import numpy as np
import pytest
from make_pt import archive, hostile, sample, shard_bytes

from sglang_dspark.calibration import read_shards
from sglang_dspark.errors import InputError


def test_tensors_come_back(tmp_path):
    logits, mask, depth = sample()
    for number in range(2):
        (tmp_path / f"s.{number}.pt").write_bytes(shard_bytes({"logits": logits, "prefix_mask": mask}))
    shards = read_shards(sorted(tmp_path.iterdir()))
    np.testing.assert_array_equal(shards.logits, np.concatenate([logits, logits]))
    np.testing.assert_array_equal(shards.depth, np.concatenate([depth, depth]))


@pytest.mark.parametrize("protocol", range(3))
def test_code_is_never_run(tmp_path, protocol):
    path = tmp_path / "attack.pt"
    path.write_bytes(hostile(os.mkdir, (str(tmp_path / "broken-in"),))[protocol])
    with pytest.raises(InputError, match="holds more than tensors"):
        read_shards([path])
    assert not (tmp_path / "broken-in").exists()


def test_a_known_opcode_with_an_unknown_name_is_refused(tmp_path):
    logits, mask, _ = sample(10)
    path = tmp_path / "attack.pt"
    path.write_bytes(shard_bytes({"logits": logits, "prefix_mask": mask}, reduce_name="cos\nsystem\n"))
    with pytest.raises(InputError, match="os.system"):
        read_shards([path])


def bad_shape():
    logits, mask, _ = sample(10)
    return shard_bytes({"logits": logits, "prefix_mask": mask[:5]})


def bad_mask():
    logits, mask, _ = sample(10)
    return shard_bytes({"logits": logits, "prefix_mask": np.roll(mask + 0.5, 1)})


def not_finite():
    logits, mask, _ = sample(10)
    return shard_bytes({"logits": np.full_like(logits, np.nan), "prefix_mask": mask})


def compressed():
    logits, mask, _ = sample(10)
    return shard_bytes({"logits": logits, "prefix_mask": mask}, compression=zipfile.ZIP_DEFLATED)


def short_storage():
    logits, mask, _ = sample(10)
    good = shard_bytes({"logits": logits, "prefix_mask": mask})
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        return archive({"data.pkl": file.read("shard/data.pkl"), "data/0": b"1234", "data/1": b""})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: b"not a zip", "expected a torch.save file"),
        (lambda: archive({"other": b""}), "expected one data.pkl"),
        (lambda: archive({"data.pkl": b"\x80\x02}."}), "expected tensors 'logits'"),
        (lambda: archive({"data.pkl": b"\x80\x02}"}), "expected a torch.save file"),
        (bad_shape, "expected .n, gamma. twice"),
        (bad_mask, "expected finite logits and a prefix mask"),
        (not_finite, "expected finite logits"),
        (compressed, "compressed"),
        (short_storage, "has 4 bytes"),
    ],
)
def test_broken_shards_are_refused_by_name(tmp_path, data, words):
    path = tmp_path / "bad.pt"
    path.write_bytes(data())
    with pytest.raises(InputError, match=f"bad.pt.*{words}"):
        read_shards([path])


def test_random_damage_is_an_input_error_or_harmless(tmp_path):
    logits, mask, _ = sample(50)
    whole, rng = shard_bytes({"logits": logits, "prefix_mask": mask}), np.random.default_rng(3)
    path = tmp_path / "damaged.pt"
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=3):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_shards([path])
        except InputError:
            pass


def test_torch_s_own_file(tmp_path):
    torch = pytest.importorskip("torch", reason="writes the file")
    logits, mask, depth = sample()
    columns = {"logits": torch.tensor(logits), "prefix_mask": torch.tensor(mask)}
    torch.save(columns, tmp_path / "s.0.pt")
    torch.save({name: column[::2].t().contiguous().t() for name, column in columns.items()}, tmp_path / "s.1.pt")
    shards = read_shards([tmp_path / "s.0.pt", tmp_path / "s.1.pt"])
    np.testing.assert_array_equal(shards.logits, np.concatenate([logits, logits[::2]]))
    np.testing.assert_array_equal(shards.depth, np.concatenate([depth, depth[::2]]))
