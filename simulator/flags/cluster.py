"""Flags of where runs are simulated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from sglang_dspark.errors import InputError
from sglang_dspark.on_ray import RayCluster
from sglang_dspark.workers import Hire

PANEL = "More than one machine"


@dataclass(frozen=True)
class ClusterFlags:
    """On this machine, or on a Ray cluster; results are the same."""

    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="simulate on Ray (extra `ray`): the cluster of RAY_ADDRESS, else the one that runs on this machine, "
            "else this machine alone",
            rich_help_panel=PANEL,
        ),
    ] = False
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="on this Ray cluster, HOST:6379 or auto; this machine is part of it, all of it has sglang-dspark[ray]",
            rich_help_panel=PANEL,
        ),
    ] = None

    @property
    def asked(self) -> bool:
        """Whether work goes to Ray."""
        return self.ray or self.ray_address is not None

    def check(self, flag: str, jobs: int | None) -> None:
        """Refuse a number of processes beside a cluster, which has its own. flag: how the command calls it."""
        if self.asked and jobs is not None:
            raise InputError(
                f"{flag} {jobs} counts processes of this machine, and Ray says itself how many: leave it out"
            )

    @contextmanager
    def hire(self) -> Iterator[Hire | None]:
        """Where workers come from; None is this machine. Errors: InputError."""
        if not self.asked:
            yield None
            return
        with RayCluster(self.ray_address) as cluster:
            print(cluster, file=sys.stderr, flush=True)
            yield cluster.hire
