"""Downloads what a bare GPU machine lacks, as wheels for its Python, and builds this project's own.

    python benchmarks/gpu_wheels.py --out wheels [--python 3.12] [--sglang sglang-files]

The machine has PyTorch, Triton and NumPy, and no network: `gpu_session.py --wheels` installs from the folder. --sglang
unpacks SGLang's own kernel files beside them (not a server: the baseline of the kernels stage).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "msgspec",
    "zstandard",
    "simpy",
    "typer",
    "rich",
    "scipy",
    "pytest",
    "pytest-timeout",
    "hypothesis",
    "markdown-it-py",
    "mdurl",
    "pygments",
    "shellingham",
    "annotated-doc",
    "iniconfig",
    "pluggy",
    "packaging",
    "sortedcontainers",
)
KERNEL_FILES = "sglang/kernels/ops/speculative/"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheels")
    parser.add_argument("--python", default="3.12", help="the machine's Python (default 3.12)")
    parser.add_argument("--sglang", type=Path, help="folder for SGLang's own kernel files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    target = ["--only-binary", ":all:", "--python-version", options.python, "--implementation", "cp"]
    for glibc in ("2014", "_2_28"):
        target += ["--platform", f"manylinux{glibc}_x86_64"]
    subprocess.run([*pip, "download", "--no-deps", *target, "--dest", str(options.out), *NEEDED], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(options.out), str(ROOT)], check=True)
    if options.sglang is not None:
        unpack(pip, options.sglang)
    size = sum(path.stat().st_size for path in options.out.glob("*.whl"))
    print(f"{len(list(options.out.glob('*.whl')))} wheels, {size / 2**20:.0f} MiB, in {options.out}")
    return 0


def unpack(pip: list[str], target: Path) -> None:
    """SGLang's speculative kernels out of its wheel: files of Triton and torch, nothing else of it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, "download", "--no-deps", "--dest", folder, "sglang==0.5.23"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target, [name for name in archive.namelist() if name.startswith(KERNEL_FILES)])


if __name__ == "__main__":
    raise SystemExit(main())
