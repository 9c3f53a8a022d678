"""A real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ray() -> Any:
    """Ray, whose processes find this checkout and these tests."""
    paths = [str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(PYTHONPATH=os.pathsep.join(paths), RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    return pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.fixture(scope="session")
def head(ray: Any) -> Iterator[Any]:
    """A cluster with one node of one CPU."""
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def nodes(head: Any) -> Iterator[Any]:
    """The cluster; nodes that a test adds are gone after it."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)
