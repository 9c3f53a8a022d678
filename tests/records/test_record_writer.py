"""The writer beside an engine: killed, out of disk, too slow a disk, many records; and what it costs the caller."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import msgspec
import pytest
from synthetic_records import header_of, synthetic_request, synthetic_steps

from sglang_dspark.errors import InputError
from sglang_dspark.records import RecordSet, RecordWriter, WriterLimits, files
from sglang_dspark.records.codec import MAX_BLOCK

HERE = Path(__file__).parent
QUICK = WriterLimits(flush_s=0.02, poll_s=0.005)


def start_writing(folder, flush_s):
    """A process that writes steps 0, 1, 2, ... and prints each number after it was handed to the writer."""
    code = f"""
        import itertools, sys, time
        sys.path.insert(0, {str(HERE)!r})
        import msgspec
        from synthetic_records import header_of, synthetic_steps
        from sglang_dspark.records import RecordWriter, WriterLimits
        steps = list(synthetic_steps(steps=50))
        writer = RecordWriter({str(folder)!r}, header_of("argmax:lag=2", 5), WriterLimits(flush_s={flush_s}))
        for number in itertools.count():
            assert writer.put(msgspec.structs.replace(steps[number % 50], step=number))
            print(number, time.time(), flush=True)
            time.sleep(0.002)
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)


def test_kill_9_loses_at_most_the_last_flush(tmp_path):
    flush_s = 0.3
    process = start_writing(tmp_path, flush_s)
    seen = []
    for line in process.stdout:
        seen.append(line.split())
        if len(seen) == 700:
            os.kill(process.pid, signal.SIGKILL)
            break
    killed = time.time()
    process.wait()
    process.stdout.close()
    records = RecordSet(tmp_path)
    found = [step.step for _, step in records.steps()]
    assert found == list(range(len(found))), "a prefix, in order"
    assert records.summary.problems == []
    safe = [int(number) for number, stamp in seen if float(stamp) < killed - flush_s - 0.5]
    assert safe and found[-1] >= safe[-1]


def test_a_full_disk_drops_counts_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    room, real = [30_000], os.write

    def write(descriptor, data):
        if len(data) > room[0]:
            part = real(descriptor, data[: room[0]]) if room[0] else 0
            room[0] = 0
            if part:
                return part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data)
        return real(descriptor, data)

    monkeypatch.setattr(files.os, "write", write)
    steps = list(synthetic_steps(steps=50))
    limits = WriterLimits(flush_s=0.02, poll_s=0.005, queue_bytes=200_000)
    with caplog.at_level(logging.WARNING):
        writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), limits)
        for number in range(600):
            writer.put(msgspec.structs.replace(steps[number % 50], step=number))
            time.sleep(0.0005)
        assert writer.stats.dropped > 0 and writer.stats.problem == "No space left on device"
        assert sum("records" in message for message in caplog.messages) == 1, "said once a minute"
        room[0] = 1 << 30
        assert writer.flush()
    writer.put(synthetic_request())
    stats = writer.close()
    records = RecordSet(tmp_path)
    summary = records.scan()
    assert summary.problems == [] and summary.requests == 1 and stats.problem == ""
    assert summary.dropped == stats.dropped and summary.steps + stats.dropped == 600


def test_a_limit_of_the_system_is_survived(tmp_path):
    """The kernel itself refuses to let the file grow (RLIMIT_FSIZE): nothing is raised, what fitted is readable."""
    code = f"""
        import resource, sys, msgspec
        sys.path.insert(0, {str(HERE)!r})
        from synthetic_records import header_of, synthetic_steps
        from sglang_dspark.records import RecordWriter, WriterLimits
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        limits = WriterLimits(block_bytes=4096, flush_s=0.01, poll_s=0.005)
        writer = RecordWriter({str(tmp_path)!r}, header_of("argmax:lag=2", 5), limits)
        for step in synthetic_steps(steps=300):
            writer.put(step)
        stats = writer.close()
        assert stats.dropped > 0 and stats.problem == "File too large", stats
        print(stats.written)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = RecordSet(tmp_path).scan()
    assert summary.steps == int(done.stdout) > 0 and summary.problems == []


def test_a_slow_disk_never_makes_the_caller_wait(tmp_path, monkeypatch):
    """The disk takes nothing before every record has been put: a put that waited for it would wait for ever."""
    real, all_put = os.write, threading.Event()

    def slow(descriptor, data):
        assert all_put.wait(60), "a put waited for the disk"
        return real(descriptor, data)

    monkeypatch.setattr(files.os, "write", slow)
    writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), WriterLimits(poll_s=0.001, queue_bytes=50_000))
    steps = list(synthetic_steps(steps=200))
    for step in steps:
        writer.put(step)
    all_put.set()
    dropped = writer.stats.dropped
    assert dropped > 0
    monkeypatch.undo()
    assert writer.close().written + dropped == len(steps)
    assert RecordSet(tmp_path).scan().steps == len(steps) - dropped


def test_what_cannot_be_encoded_is_dropped_not_raised(tmp_path):
    writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), QUICK)
    [step] = synthetic_steps(steps=1)
    assert not writer.put(msgspec.structs.replace(step, carry=object()))
    assert writer.put(step)
    assert writer.close().dropped == 1
    assert not writer.put(step), "closed"
    assert RecordSet(tmp_path).scan().dropped == 1


def test_arrays_may_be_reused_after_put(tmp_path):
    writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), QUICK)
    [step] = synthetic_steps(steps=1)
    expected = step.confidence.copy()
    writer.put(step)
    step.confidence[:] = 0
    writer.close()
    [(_, found)] = RecordSet(tmp_path).steps()
    assert (found.confidence == expected).all()


def test_the_oldest_files_go_beyond_the_total(tmp_path):
    limits = WriterLimits(block_bytes=4096, file_bytes=20_000, total_bytes=60_000, poll_s=0.001)
    writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), limits)
    for step in synthetic_steps(steps=600):
        writer.put(step)
    writer.close()
    left = sorted(tmp_path.iterdir())
    assert sum(path.stat().st_size for path in left) < 70_000 and not left[0].name.endswith("-00000.dspark")
    assert [step.step for _, step in RecordSet(tmp_path).steps()][-1] == 599


def test_a_removed_file_is_not_written_on(tmp_path):
    writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), QUICK)
    steps = list(synthetic_steps(steps=2))
    writer.put(steps[0])
    assert writer.flush()
    [path] = tmp_path.iterdir()
    path.unlink()
    writer.put(steps[1])
    writer.close()
    assert [step.step for _, step in RecordSet(tmp_path).steps()] == [1]


def test_a_deleted_folder_is_made_again(tmp_path):
    folder = tmp_path / "records"
    writer = RecordWriter(folder, header_of("argmax:lag=2", 5), QUICK)
    steps = list(synthetic_steps(steps=2))
    writer.put(steps[0])
    assert writer.flush()
    shutil.rmtree(folder)
    writer.put(steps[1])
    assert writer.flush() and writer.stats.problem == ""
    writer.close()
    assert [step.step for _, step in RecordSet(folder).steps()] == [1]


def test_records_are_their_owners_alone(tmp_path):
    folder = tmp_path / "a" / "records"
    writer = RecordWriter(folder, header_of("fixed", 7), QUICK)
    for step in synthetic_steps(steps=2):
        writer.put(step)
    writer.close()
    [path] = folder.iterdir()
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)


def test_the_limit_holds_for_the_folder_whatever_run_wrote_it(tmp_path):
    (tmp_path / "notes.txt").write_text("not ours")
    limits = WriterLimits(block_bytes=4096, file_bytes=20_000, total_bytes=60_000, poll_s=0.001)
    for _ in range(3):  # a server that is restarted
        writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), limits)
        for step in synthetic_steps(steps=300):
            writer.put(step)
        writer.close()
    records = RecordSet(tmp_path)
    assert sum(path.stat().st_size for path in records.paths) < 70_000 and (tmp_path / "notes.txt").exists()
    assert len(records.scan().runs) < 3


def test_a_record_that_no_reader_would_take_is_dropped(tmp_path):
    writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), QUICK)
    step = next(iter(synthetic_steps(steps=1)))
    assert not writer.put(msgspec.structs.replace(step, override="x" * MAX_BLOCK))
    assert writer.put(step) and writer.close().dropped == 1
    assert RecordSet(tmp_path).scan().steps == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot record into"):
        RecordWriter(tmp_path / "file" / "below", header_of("fixed", 7))


def write_many(folder, count):
    steps = list(synthetic_steps(steps=200))
    writer = RecordWriter(folder, header_of("argmax:lag=2", 5), WriterLimits(poll_s=0.005))
    for number in range(count):
        if number % 2000 == 0:
            writer.flush(30.0)
        assert writer.put(msgspec.structs.replace(steps[number % 200], step=number))
    assert writer.close(60.0).dropped == 0


def peak_bytes_of_reading(folder):
    """(steps, growth of the peak memory over the start of the pass) in a process of its own."""
    code = f"""
        import resource
        from sglang_dspark.records import RecordSet
        records = RecordSet({str(folder)!r})
        records.header()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps = sum(1 for _ in records.steps())
        print(steps, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return tuple(map(int, out.stdout.split()))


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_many_steps_are_read_in_bounded_memory(tmp_path, count):
    write_many(tmp_path, count)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    steps, growth = peak_bytes_of_reading(tmp_path)
    assert steps == count and size > 2_000_000
    assert growth < 16 << 20, f"reading {size} bytes took {growth} bytes more memory"


def test_a_put_costs_the_caller_microseconds(tmp_path):
    writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 7))
    steps = list(synthetic_steps(gamma=7, slots=64, steps=100))
    spent = []
    for step in steps * 5:
        begun = time.thread_time()
        writer.put(step)
        spent.append(time.thread_time() - begun)
    writer.close()
    assert sorted(spent)[len(spent) // 2] < 200e-6


def test_the_caller_s_memory_is_bounded(tmp_path, monkeypatch):
    """A disk that takes nothing: the queue stays below its bound."""
    monkeypatch.setattr(files.os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    writer = RecordWriter(tmp_path, header_of("argmax:lag=2", 5), WriterLimits(poll_s=0.001, queue_bytes=100_000))
    for step in list(synthetic_steps(steps=100)) * 10:
        writer.put(step)
        assert writer._queued_bytes <= 100_000
    stats = writer.close()
    assert stats.dropped == 1000 and stats.written == 0 and list(tmp_path.iterdir()) == []
