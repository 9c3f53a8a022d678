"""Two processes of one gloo group that run the same function and hand their results back."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch


def results_of_two(run: Callable[[int], Any]) -> list[Any]:
    """What `run(rank)` gives on both ranks; run: picklable, as all that it gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(run, rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [results[0], results[1]]


def _rank(run: Callable[[int], Any], rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    queue.put((rank, run(rank)))
    torch.distributed.destroy_process_group()
