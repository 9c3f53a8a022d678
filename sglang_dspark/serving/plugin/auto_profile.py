"""`--speculative-dspark-profile auto`: measure this machine's step costs once, and find them again.

Before the server starts, a server of the same command line runs for a short profile (`sglang_dspark.live.profiling`)
and is ended; the table is kept by hardware, models, dtype, parallelism and versions, so that the next start finds it
at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sglang_dspark.cost import write_table
from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys
from sglang_dspark.live.cells import Graphs
from sglang_dspark.live.client import Server
from sglang_dspark.live.hold import ended_by_exception
from sglang_dspark.live.profiling import ProfilePlan, machine_of, measure, table_of

AUTO = "auto"

# What a step's cost depends on; a change of any of them is another profile.
_ARGUMENTS = (
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "tp_size",
    "pp_size",
    "attention_backend",
    "device",
    "page_size",
    "speculative_dspark_block_size",
    "speculative_draft_attention_backend",
    "cuda_graph_bs_decode",
    "cuda_graph_max_bs_decode",
    "disable_cuda_graph",
    "disable_overlap_schedule",
    "max_running_requests",
)
_PACKAGES = ("sglang", "sglang-dspark", "torch", "triton", "flashinfer-python")

# Flags of the real server that the short one must not have, with the number of values that follow them.
_DROPPED = {
    "--speculative-dspark-profile": 1,
    "--speculative-dspark-policy": 1,
    "--speculative-dspark-shadow-policy": 1,
    "--speculative-dspark-schedule": 1,
    "--speculative-dspark-record": 1,
    "--speculative-dspark-explore": 1,
    "--speculative-dspark-record-text": 0,
    "--speculative-dspark-record-limit": 1,
    "--speculative-dspark-allow-foreign-profile": 0,
    "--speculative-dspark-if-possible": 0,
    "--speculative-dspark-allow-estimate": 0,
    "--speculative-dspark-sps-table-path": 1,
    "--port": 1,
    "--enable-metrics": 0,
}
_CHILD = "SGLANG_DSPARK_MEASURES_ITSELF"  # set for the short server, which must not start another one
_START_LIMIT_S = 1800.0
_MEASURED_AS = 2  # raised when what a profile measures changes: one that was measured otherwise is not found again


def find_or_measure(arguments: Any, command: Sequence[str]) -> str:
    """Path of the profile for a server with these arguments; measured first if it is not there yet.

    arguments: the parsed command line (a `ServerArgs` or a namespace). command: how this process was started.
    Errors: InputError for several nodes, and when the short server does not come up or cannot be measured.
    """
    if int(getattr(arguments, "nnodes", 1) or 1) > 1:
        raise InputError("--speculative-dspark-profile auto measures one node: give the profile of a measured one")
    if os.environ.get(_CHILD):
        raise InputError("write --speculative-dspark-profile auto in full: an abbreviated flag cannot be left out")
    circumstances = describe(arguments)
    path = cache_folder() / f"{key_of(circumstances)}.json"
    if path.is_file():
        print(f"sglang-dspark: profile {path} (measured before)", file=sys.stderr, flush=True)
        return str(path)
    print("sglang-dspark: no profile for this machine and model yet: measuring one, in minutes", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    plan = ProfilePlan(shares=(0.0, 0.5, 1.0), windows=2, window_s=0.5)  # batches and contexts are the server's
    keys = Keys(getattr(arguments, "api_key", None), getattr(arguments, "admin_api_key", None))
    short = short_command(command, port := _free_port())
    # Told to end meanwhile, this process must not leave the short server behind.
    with ended_by_exception(), _short_server(short, port, keys) as server:
        cells = measure(
            server,
            plan,
            lambda cell: print(
                f"sglang-dspark: {cell.requests} requests, {cell.tokens} tokens, context {cell.context:.0f}: "
                f"{1e3 * cell.seconds:.2f} ms",
                file=sys.stderr,
                flush=True,
            ),
        )
        state = server.dspark()[0]
        circumstances |= machine_of(state)
    write_table(path, table_of(cells, circumstances, Graphs.of(state)))
    print(f"sglang-dspark: wrote profile {path}", file=sys.stderr, flush=True)
    return str(path)


def describe(arguments: Any) -> dict[str, Any]:
    """What the step costs depend on, in words; stands in the table's `meta`."""
    from sglang_dspark.serving.base.hardware import launcher_hardware

    model, draft = (getattr(arguments, name, None) for name in ("model_path", "speculative_draft_model_path"))
    out: dict[str, Any] = {
        "hardware": launcher_hardware(int(getattr(arguments, "base_gpu_id", None) or 0)) or _asked_for_hardware(),
        "model": Path(str(model)).name,
        "model_config": _config_hash(model),
        "draft_config": _config_hash(draft),
        "measured_as": _MEASURED_AS,
        "software": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
    }
    values = {name: getattr(arguments, name, None) for name in _ARGUMENTS}
    return out | {name: value for name, value in values.items() if value is not None}


def _asked_for_hardware() -> str:
    """The device's name from a process of its own: this one must not open it."""
    code = "from sglang_dspark.serving.base.hardware import hardware_name; print(hardware_name())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"this machine's device cannot be named: {done.stderr.strip()[-200:]}")
    return done.stdout.strip().splitlines()[-1]


def key_of(circumstances: dict[str, Any]) -> str:
    """A file name for these circumstances."""
    text = json.dumps(circumstances, sort_keys=True, default=str)
    name = "".join(char if char.isalnum() else "-" for char in f"{circumstances['model']}-{circumstances['hardware']}")
    return f"{name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def cache_folder() -> Path:
    """Where measured profiles are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sglang-dspark" / "profiles"


def short_command(command: Sequence[str], port: int) -> list[str]:
    """The command line of the short server: the same one, verifying in full, on its own port."""
    kept: list[str] = []
    skip = 0
    for item in command:
        if skip:
            skip -= 1
            continue
        flag, equals, _ = item.partition("=")
        if flag in _DROPPED:
            skip = 0 if equals else _DROPPED[flag]
            continue
        kept.append(item)
    return [sys.executable, *kept[1:], "--speculative-dspark-policy", "fixed:k=1", "--port", str(port)]


@contextmanager
def _short_server(command: list[str], port: int, keys: Keys) -> Iterator[Server]:
    with tempfile.NamedTemporaryFile("w+", prefix="dspark-auto-", suffix=".log") as log:
        environment = {**os.environ, _CHILD: "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        server = Server(f"http://127.0.0.1:{port}", keys)
        try:
            _wait(server, process, Path(log.name))
            yield server
        finally:
            _end(process)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = " | ".join(log.read_text("utf-8", "replace").splitlines()[-3:])
            raise InputError(f"the server for measuring a profile ended with {process.returncode}: {last[-400:]}")
        try:
            server.dspark()
            return
        except InputError:
            time.sleep(1.0)
    raise InputError(f"the server for measuring a profile did not come up in {_START_LIMIT_S:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the short server and everything that it started."""
    for how, seconds in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 30.0)):
        try:
            os.killpg(process.pid, how)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
    # Schedulers may outlive their parent for a moment and hold memory that the real server needs.
    time.sleep(1.0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _config_hash(path: str | None) -> str:
    """A hash of config.json where the model lies on disk, else of its name."""
    config = Path(str(path)) / "config.json"
    data = config.read_bytes() if config.is_file() else str(path).encode()
    return hashlib.sha256(data).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
