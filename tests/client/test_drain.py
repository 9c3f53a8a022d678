"""`dspark record` against SGLang's ring: nothing is lost where it need not be, and what is lost is counted."""

import time

import pytest
from fake_server import FakeServer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clients import dspark
from upstream_ring import RingServer, UpstreamRing

from sglang_dspark.errors import InputError
from sglang_dspark.live import drain as module
from sglang_dspark.live.client import Unreachable
from sglang_dspark.live.drain import Drain
from sglang_dspark.records import RecordSet, Summary


def numbers(folder):
    """Step numbers by run, in order."""
    records, found = RecordSet(folder), {}
    for header, step in records.steps():
        found.setdefault(header.run, []).append(step.step)
    return list(found.values()), records.scan()


def test_readings_overlap_and_lose_nothing(tmp_path):
    ring = UpstreamRing(late=3)
    drain = Drain(RingServer(ring), tmp_path)
    for _ in range(5):
        ring.decode(10)
        ring.prefill()
        drain.once()
    drain.close()
    [run], summary = numbers(tmp_path)
    assert len(run) == drain.steps == ring.decoded - 3 and drain.lost == 0 and summary.dropped == 0
    assert "none lost" in drain.said()


def test_a_long_ring_is_cleared_and_the_steps_between_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 20)
    ring = UpstreamRing(late=3)
    server = RingServer(ring)
    drain = Drain(server, tmp_path)
    ring.prefill()
    for _ in range(4):
        ring.decode(20)
        drain.once()
    drain.close()
    assert server.cleared == 2, "behind every reading that follows one of a full ring"
    [run], summary = numbers(tmp_path)
    assert drain.lost == summary.dropped == 3 and len(run) == ring.decoded - 3 - 3
    assert "up to 3 lost" in drain.said()


def test_prefills_between_two_readings_are_no_lost_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 1)
    ring = UpstreamRing()
    drain = Drain(RingServer(ring), tmp_path)
    for _ in range(4):
        ring.decode(20)
        drain.once()
        for _ in range(5):
            ring.prefill()
    drain.close()
    assert drain.lost == 0 and drain.steps == ring.decoded == 80


def test_a_ring_that_runs_over_is_counted(tmp_path):
    ring = UpstreamRing(longest=8)
    drain = Drain(RingServer(ring), tmp_path)
    ring.prefill()
    for _ in range(3):
        ring.decode(20)
        drain.once()
    drain.close()
    [run], summary = numbers(tmp_path)
    assert len(run) == 24 and drain.lost == summary.dropped == 2 * 12


@pytest.mark.parametrize("before, after", [(20, 5), (20, 20), (20, 60), (1, 1)])
def test_a_restarted_server_begins_a_run(tmp_path, before, after):
    ring = UpstreamRing()
    drain = Drain(RingServer(ring, UpstreamRing(seed=1)), tmp_path)
    ring.decode(before)
    drain.once()
    ring.restart()
    ring.decode(after)
    drain.once()
    drain.once()
    drain.close()
    runs, _ = numbers(tmp_path)
    assert sorted(len(run) for run in runs) == sorted([before, after]) and drain.restarts == 1 and drain.lost == 0
    assert "began anew 1 time(s)" in drain.said()


def test_a_server_that_is_away_is_waited_for(tmp_path):
    ring = UpstreamRing()
    server = RingServer(ring)
    server.away = Unreachable("nobody there")
    drain = Drain(server, tmp_path)
    with pytest.raises(InputError, match="nobody there"):
        drain.once()
    server.away = None
    ring.decode(5)
    drain.once()
    server.away = Unreachable("nobody there")
    drain.once()
    assert "did not answer at the end" in drain.said()
    server.away = None
    ring.decode(5)
    drain.once()
    drain.close()
    assert drain.steps == 10 and not drain.away


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("decode"), st.integers(1, 30)),
        st.tuples(st.sampled_from(["prefill", "finish", "read", "restart"]), st.none()),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(
    operations=OPERATIONS,
    longest=st.sampled_from([8, 1000]),
    rows=st.sampled_from([10, 1 << 14]),
    seed=st.integers(0, 9),
)
def test_what_is_written_and_what_is_lost_is_all_there_was(tmp_path_factory, operations, longest, rows, seed):
    """No step twice, none out of order; losses are never counted too low, and not at all where readings overlap."""
    folder = tmp_path_factory.mktemp("drain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_ROWS", rows)
        ring = UpstreamRing(longest=longest, late=2, seed=seed)
        drain = Drain(RingServer(ring), folder)
        drain.once()
        for what, count in [*operations, ("read", None)]:
            if what == "read":
                drain.once()
            else:
                getattr(ring, what)(*([count] if count else []))
        drain.close()
    runs, summary = numbers(folder) if drain.steps else ([], Summary())
    assert all(run == sorted(set(run)) for run in runs)
    assert summary.dropped == drain.lost and drain.dropped == 0
    seen = sum(shown for _, shown in ring.lives)  # up to the last step that a reading showed
    assert drain.steps <= seen
    if longest == 1000:  # what fell out of a ring before anybody had read from it is nobody's loss
        assert drain.steps + drain.lost >= seen
        if rows > 20:
            assert drain.lost == 0 and drain.steps == seen


def test_the_command_says_what_was_lost_and_clears_at_the_end(tmp_path):
    server, ring = FakeServer(dspark=False), UpstreamRing(longest=8)
    server.ring = ring
    ring.prefill()
    ring.decode(5)
    last = time.monotonic()

    def faster_than_read():
        nonlocal last
        ring.decode(20 if time.monotonic() - last > 0.05 else 0)
        last = time.monotonic()
        return ring.info()

    server.info = faster_than_read
    try:
        done = dspark("record", "--url", server.url, "--out", tmp_path, "--duration", 1, "--interval", 0.2)
    finally:
        server.close()
    [run], summary = numbers(tmp_path)
    assert done.returncode == 0 and summary.dropped > 0, done.stderr
    assert f"{len(run)} decode steps of 1 replica(s)" in done.stdout
    assert f"up to {summary.dropped} lost, forgotten by the server" in done.stdout
    assert server.cleared == 1 and not ring.steps
