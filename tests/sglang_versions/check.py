"""Does this package fit these releases of SGLang? Their wheels are downloaded and read, never installed or imported.

    python tests/sglang_versions/check.py            # every tested release must fit; the newest one may not
    python tests/sglang_versions/check.py 0.5.22     # these releases; exit status 1 where one does not fit

A newest release beyond the tested range that differs is named with what moved, and never fails the run. Kernels and
FlashInfer may have moved in a tested release: there SGLang's own run instead, which is said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_dspark.serving.base import contract  # noqa: E402
from sglang_dspark.serving.base.signatures import difference  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.contract import REPLACED  # noqa: E402
from sglang_dspark.serving.gpu.flashinfer_ragged import contract as flashinfer  # noqa: E402

if __name__ == "__main__":
    from source import Source
else:
    from tests.sglang_versions.source import Source

ROOT = Path(__file__).resolve().parents[2]
CODE = (ROOT / "sglang_dspark", ROOT / "simulator", ROOT / "kernels")


_BACKEND = "sglang.srt.layers.attention.flashinfer_backend.FlashInferAttnBackend"
OPTIONAL = {f"kernel {name}": targets for name, targets in REPLACED.items()} | {"FlashInfer": flashinfer.CALLS}
"""Parts that are switched off one by one where what they stand in for has moved."""


def calls() -> dict[str, str]:
    """Every signature that must be there."""
    return contract.WORKER_CALLS | contract.HOOKED_CALLS | contract.CPU_CALLS


def attributes() -> list[str]:
    """Every attribute that is read or set, with its class before it."""
    listed = contract.ATTRIBUTES | {_BACKEND: flashinfer.ATTRIBUTES}
    return [f"{owner}.{name}" for owner, names in listed.items() for name in names]


def imported(folders: tuple[Path, ...] = CODE) -> list[str]:
    """Every name of SGLang that our code imports, by its own import statements."""
    import ast

    found = set()
    for file in (file for folder in folders for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang" and not node.level:
                found |= {f"{node.module}.{one.name}" for one in node.names}
            elif isinstance(node, ast.Import):
                found |= {one.name for one in node.names if one.name.split(".")[0] == "sglang"}
    return sorted(found)


def differences(source: Source) -> Iterator[str]:
    """One sentence for everything that this SGLang does not have as we need it."""
    yield from moved(source, calls())
    for target in (*attributes(), *imported()):
        if not source.has(target):
            yield f"{target} is gone"
    for target, value in contract.CONSTANTS.items():
        try:
            found_value = source.value(target)
        except ValueError as error:
            yield str(error)
            continue
        if found_value != value:
            yield f"{target} is {found_value!r}, expected {value!r}"


def moved(source: Source, expected: dict[str, str]) -> Iterator[str]:
    """As `contract.moved`, by source."""
    for target, text in expected.items():
        found = source.parameters(target)
        said = "is gone" if found is None else difference(text, found)
        if said:
            yield f"{target} {said}"


def switched_off(source: Source) -> Iterator[str]:
    """One sentence for each optional part that does not fit."""
    for part, targets in OPTIONAL.items():
        found = list(moved(source, targets))
        if found:
            yield f"{part} is off, SGLang's own runs: {'; '.join(found)}"


def wheel(release: str | None, folder: Path) -> tuple[str, Path]:
    """(version, unpacked wheel) of a release, the newest one for None."""
    wanted = "sglang" if release is None else f"sglang=={release}"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    done = subprocess.run([*pip, wanted], capture_output=True, text=True)
    files = list(folder.glob("*.whl"))
    if done.returncode or not files:
        raise OSError(f"pip download {wanted}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    with zipfile.ZipFile(files[0]) as archive:
        archive.extractall(folder / "unpacked", [name for name in archive.namelist() if name.endswith(".py")])
    return files[0].name.split("-")[1], folder / "unpacked"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", help="default: every tested one, and the newest")
    asked = parser.parse_args().releases
    misfits = 0
    for release in asked or [*contract.TESTED, None]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                version, unpacked = wheel(release, Path(folder))
            except OSError as error:
                if release is not None:
                    raise
                print(f"WARNING: the newest sglang could not be read: {error}")
                continue
            if release is None and version in contract.TESTED:
                print(f"sglang {version} is the newest, and tested")
                continue
            found, off = list(differences(Source(unpacked))), list(switched_off(Source(unpacked)))
        must = release is not None
        misfits += bool(found) and must
        kind = "sglang" if not found or must else "WARNING: the newest sglang"
        print(f"{kind} {version}: " + (f"{len(found)} differences" if found else "everything is as expected"))
        for sentence in found + off:
            print(f"  {sentence}")
    return 1 if misfits else 0


if __name__ == "__main__":
    sys.exit(main())
