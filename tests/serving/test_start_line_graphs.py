"""What the worker says at start of graphs that the simulator would not have expected."""

from __future__ import annotations

from sglang_dspark.cost.graphs import Machine, captured_batches, listed_batches
from sglang_dspark.serving.base.start_line import unforeseen_graphs

H100 = Machine(79.6, 1)
FORESEEN = list(captured_batches(listed_batches(256, drafting=True), 48, width=8))


def said(batches: list[int], machine: Machine = H100, limit: int | None = None, pool: int = 48) -> str:
    return unforeseen_graphs(batches, machine, limit=limit, pool=pool, width=8, alignment=1)


def test_nothing_is_said_of_what_was_foreseen() -> None:
    assert said(FORESEEN) == ""
    assert said([*FORESEEN, 50], limit=50, pool=50) == ""


def test_a_difference_is_named_with_the_flag_that_simulates_it() -> None:
    line = said([1, 2, 4, 8])
    assert line == (
        "sglang-dspark: this server captured other CUDA graphs (4 batch sizes up to 8) than the simulator expects of "
        "SGLang with 79.6 GiB a GPU, TP 1 and 48 requests (23 batch sizes up to 48): simulate it with --graphs 1,2,4,8"
    )
    assert "unknown GPU memory" in said(FORESEEN[:-1], Machine())
