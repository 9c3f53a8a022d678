"""What a stamp means: its unit, whether it is the tick of a coarse clock, or one of a burst that really came so."""

import math

import numpy as np
import pytest
import trace_files
from trace_files import FILES

from sglang_dspark.errors import InputError
from simulator.traces import Trace, example_trace, load_trace, scale_rate, trace_facts, write_trace


def bucketed(width_ms: float, seed: int = 5, count: int = 400, buckets: int = 90):
    draws = np.sort(np.random.default_rng(seed).integers(0, buckets, count))
    return [(round(width_ms * bucket) / 1e3, 10 + n, 5) for n, bucket in enumerate(draws)]


def assert_spread(trace: Trace, rows: list[tuple], width_s: float) -> None:
    """Each request lies within its bucket, evenly, and none overtakes another."""
    stamps = np.array([row[0] for row in rows])
    moved = trace.arrival_s - (stamps - stamps[0])
    assert (moved >= 0).all() and (moved <= width_s + 0.001).all()
    assert trace.input_length.tolist() == [row[1] for row in rows]  # file order kept
    assert moved.mean() == pytest.approx(width_s / 2, rel=0.1)
    assert np.unique(trace.arrival_s).size == len(rows)
    assert any(note.startswith(f"jitter: arrivals come in buckets of {width_s:.2f}") for note in trace.notes)


@pytest.fixture
def file(tmp_path):
    """Writes rows as a Mooncake trace; returns its path."""

    def write(rows):
        (tmp_path / "t.jsonl").write_text(trace_files.mooncake(rows))
        return tmp_path / "t.jsonl"

    return write


@pytest.mark.parametrize("width_ms", [1000, 1050, 250])
def test_the_ticks_of_a_clock_of_about_a_second_are_spread(file, width_ms):
    rows = bucketed(width_ms)
    path = file(rows)
    trace = load_trace(path, seed=3)
    assert_spread(trace, rows, width_ms / 1e3)
    assert any("--no-jitter" in note for note in trace.notes)
    assert load_trace(path, seed=3).arrival_s.tolist() == trace.arrival_s.tolist()
    assert load_trace(path, seed=4).arrival_s.tolist() != trace.arrival_s.tolist()
    kept = load_trace(path, jitter=False)
    np.testing.assert_allclose(kept.arrival_s, [row[0] - rows[0][0] for row in rows], rtol=0, atol=1e-9)
    with pytest.raises(InputError, match=r"--jitter does nothing with t.jsonl .mooncake.: .* spread without it"):
        load_trace(path, jitter=True)


@pytest.mark.parametrize("width_ms", [3000, 3053.5, 15000, 1200])
def test_a_coarser_grid_is_bursts_and_stays(file, width_ms):
    rows = bucketed(width_ms)
    path = file(rows)
    trace = load_trace(path)
    np.testing.assert_allclose(trace.arrival_s, [row[0] - rows[0][0] for row in rows], rtol=0, atol=1e-9)
    (note,) = [note for note in trace.notes if note.startswith("bursts: ")]
    assert f"come in bursts every {width_ms / 1e3:.2f}" in note and "--jitter" in note
    assert_spread(load_trace(path, jitter=True, seed=3), rows, width_ms / 1e3)
    with pytest.raises(InputError, match=r"--no-jitter does nothing with .* kept without it"):
        load_trace(path, jitter=False)


@pytest.mark.parametrize("width_ms", [1000, 3000])
def test_our_own_stamps_move_only_when_asked(tmp_path, width_ms):
    rows = bucketed(width_ms)
    path = tmp_path / "own.jsonl"
    write_trace(path, Trace(*(np.array(column) for column in zip(*rows, strict=True))))
    trace = load_trace(path)
    assert trace.arrival_s.tolist() == [row[0] for row in rows]
    assert any(note.startswith("bursts: ") for note in trace.notes)
    assert_spread(load_trace(path, jitter=True), rows, width_ms / 1e3)
    with pytest.raises(InputError, match="--no-jitter does nothing"):
        load_trace(path, jitter=False)


def test_fine_stamps_are_not_moved(file):
    arrivals = np.cumsum(np.random.default_rng(1).exponential(0.25, 300))
    rows = [(round(t, 3), 5, 5) for t in arrivals]
    path = file(rows)
    trace = load_trace(path)
    assert not any(note.startswith(("jitter", "bursts")) for note in trace.notes)
    np.testing.assert_allclose(np.diff(trace.arrival_s), np.diff([row[0] for row in rows]), atol=1e-9)
    for jitter in (True, False):
        with pytest.raises(InputError, match="jitter does nothing with t.jsonl .mooncake.: its stamps lie on no"):
            load_trace(path, jitter=jitter)


def test_irregular_bunches_are_not_taken_for_buckets(file):
    starts = np.cumsum(np.random.default_rng(2).exponential(3.0, 60))
    path = file([(round(t, 3), 5, 5) for t in np.repeat(starts, 5)])
    assert not any(note.startswith(("jitter", "bursts")) for note in load_trace(path).notes)


@pytest.mark.parametrize(("expected", "text"), [file[1:] for file in FILES], ids=[file[0] for file in FILES])
def test_the_unit_of_numeric_stamps_can_be_said(tmp_path, expected, text):
    path = tmp_path / "t"
    path.write_text(text)
    if expected in ("azure", "own", "sglang-log"):
        with pytest.raises(InputError, match=f"--time-unit does nothing with .*format {expected}"):
            load_trace(path, time_unit="s")
        return
    default = load_trace(path).arrival_s
    seconds, milliseconds = (load_trace(path, time_unit=unit) for unit in ("s", "ms"))
    np.testing.assert_allclose(seconds.arrival_s, 1e3 * milliseconds.arrival_s, rtol=1e-12)
    assert default.tolist() == (milliseconds if expected == "mooncake" else seconds).arrival_s.tolist()
    assert "time unit: the stamps are read as ms, as asked" in milliseconds.notes


def test_unix_time_in_milliseconds_is_within_range(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n1700000000000,5,5\n1700000001500,5,5\n")
    with pytest.raises(InputError, match=r"expected seconds 0 \.\. 1e\+10, got '1700000000000'"):
        load_trace(path)
    assert load_trace(path, time_unit="ms").arrival_s.tolist() == [0.0, 1.5]
    path.write_text('{"timestamp": 1700000000000, "input_length": 5, "output_length": 5}\n')
    with pytest.raises(InputError, match=r"expected seconds 0 \.\. 1e\+10, got '1700000000000'"):
        load_trace(path, time_unit="s")


@pytest.mark.parametrize(("gap_s", "odd"), [(0.001, 1), (0.0099, 1), (0.011, 0), (0.1, 0), (10, 0), (99, 0), (101, 1)])
def test_an_implausible_rate_is_a_warning(tmp_path, gap_s, odd):
    path = tmp_path / "t.csv"
    path.write_text(trace_files.vidur([(n * gap_s, 5, 5) for n in range(50)]))
    warned = [note for note in load_trace(path).notes if note.startswith("warning: ")]
    assert len(warned) == odd and all("--time-unit" in note for note in warned)
    assert not any(note.startswith("warning") for note in load_trace(path, time_unit="s").notes)


def test_dates_and_our_own_stamps_are_not_doubted(tmp_path):
    rows = [(n / 1000, 5, 5) for n in range(50)]
    for write in (trace_files.azure, trace_files.own):
        (tmp_path / "t").write_text(write(rows))
        trace = load_trace(tmp_path / "t")
        assert trace.offered_rate == pytest.approx(1000)
        assert not any(note.startswith("warning") for note in trace.notes)


def test_offered_rate_is_one_over_the_mean_gap():
    trace = Trace([3.0, 4.0, 11.0], [1, 1, 1], [1, 1, 1])
    assert trace.span_s == 8.0 and trace.offered_rate == 0.25
    assert scale_rate(trace, 4.0).offered_rate == 1.0
    assert Trace([2.0, 2.0], [1, 1], [1, 1]).offered_rate == math.inf
    assert Trace([2.0], [1], [1]).offered_rate is None
    assert Trace([0.0, 0.0], [1, 1], [1, 1], stamped=False).offered_rate is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"arrival_s": np.linspace(5.0, 103.2, 301)}, "301 requests over 98.2 s: 3.05 requests/s"),
        ({"arrival_s": np.linspace(0.0, 0.144, 301)}, "301 requests over 0.144 s: 2,083 requests/s"),
        ({"arrival_s": [0.0, 144232.0]}, "2 requests over 144,232 s: 0.00000693 requests/s"),
        ({"arrival_s": [4.0]}, "1 request"),
        ({"arrival_s": [4.0, 4.0]}, "2 requests at once"),
        ({"arrival_s": [0.0, 0.0], "stamped": False}, "2 requests without stamps"),
    ],
)
def test_span_and_rate_in_words(fields, said):
    lengths = np.full(len(fields["arrival_s"]), 10)
    plain = Trace(**fields, input_length=lengths, output_length=lengths)
    assert trace_facts(plain) == (said,)
    cached = Trace(**fields, input_length=lengths, output_length=lengths, cached_length=lengths - 1)
    assert trace_facts(cached) == (said, "90.0% of the prompt tokens are in the prefix cache and not prefilled")


def test_the_example_has_no_grid():
    assert not any(note.startswith(("jitter", "bursts")) for note in example_trace().notes)
