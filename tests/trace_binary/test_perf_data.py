"""perf.data: every form gives the events that were written, and perf itself prints the same."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tracewriter as tw
from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.fields import Rows
from lzero.trace.readers.events import Diagnosis, EventKind, event_dtype
from lzero.trace.readers.perf_data import is_perf_data, read_perf_data

Events = Callable[..., list[tw.Event]]
Rounds = Callable[..., list[tw.Event | bytes]]

SMALL = 1 << 17
KINDS = {
    "kvm_exit": EventKind.EXIT,
    "kvm_entry": EventKind.ENTRY,
    "kvm_nested_vmexit": EventKind.NESTED_VMEXIT,
    "kvm_nested_vmexit_inject": EventKind.NESTED_INJECT,
    "kvm_nested_vmenter": EventKind.NESTED_VMENTER,
}


def read(data: bytes, strict: bool = False, chunk: int = SMALL) -> tuple[Rows, Diagnosis]:
    """All events of a recording, and the diagnosis."""
    diagnosis = Diagnosis("test", strict=strict)
    batches = list(read_perf_data(io.BytesIO(data), diagnosis, chunk))
    return np.concatenate([np.zeros(0, event_dtype()), *batches]), diagnosis


def expected(events: list[tw.Event], vcpu: bool = True) -> Rows:
    """The rows that a list of events should become."""
    wanted = [event for event in events if event.type.name in KINDS]
    rows = np.zeros(len(wanted), event_dtype())
    for row, event in zip(rows, wanted, strict=True):
        names = {spec.name for spec in event.type.fields}
        value = {name: event.values[name] for name in names if name in event.values}
        row["kind"], row["cpu"], row["thread"] = KINDS[event.type.name], event.cpu, event.pid
        row["time_ns"] = event.time_ns
        row["vcpu"] = value.get("vcpu_id", -1) if vcpu else -1
        row["isa"] = value.get("isa", 1)
        row["reason"] = value.get("exit_reason", value.get("exit_code", 0))
        row["rip"] = value.get("guest_rip", value.get("rip", 0))
        row["info1"] = value.get("info1", value.get("exit_info1", 0))
        row["info2"] = value.get("info2", 0)
        row["intr_info"] = value.get("intr_info", 0)
        row["error_code"] = value.get("error_code", 0)
    return rows


def test_file_and_pipe_give_the_written_events(make_events: Events, in_rounds: Rounds) -> None:
    events = make_events(5000)
    recording = tw.PerfFile(in_rounds(events))
    for data in (recording.to_file(), recording.to_pipe()):
        rows, diagnosis = read(data, strict=True)
        assert is_perf_data(data[:8])
        np.testing.assert_array_equal(rows, expected(events))
        assert diagnosis.events == rows.size
        assert diagnosis.others == sum(event.type is tw.KVM_MSR for event in events)


@pytest.mark.parametrize("without", [tw.IDENTIFIER, tw.CPU, tw.PERIOD, tw.IP])
@pytest.mark.parametrize("added", [0, tw.ADDR | tw.ID | tw.STREAM_ID, tw.CALLCHAIN, tw.READ, tw.READ | tw.CALLCHAIN])
def test_sample_types(make_events: Events, without: int, added: int) -> None:
    events = make_events(300)
    sample_type = tw.DEFAULT_SAMPLE & ~without | added
    for read_format in (0, 1 | 2 | 4, 1 | 4 | 8 | 16) if added & tw.READ else (0,):
        recording = tw.PerfFile(events, sample_type=sample_type, read_format=read_format)
        rows, _ = read(recording.to_file(), strict=True)
        wanted = expected(events)
        if without == tw.CPU:
            wanted["cpu"] = -1
        np.testing.assert_array_equal(rows, wanted)


def test_older_format_of_the_event(make_events: Events) -> None:
    values = {"exit_reason": 10, "guest_rip": 7, "isa": 2, "info1": 5, "info2": 6}
    events = [tw.Event(tw.KVM_EXIT_OLD, 1000 + number, 0, 77, values) for number in range(10)]
    rows, _ = read(tw.PerfFile(events, types=(tw.KVM_EXIT_OLD,)).to_file(), strict=True)
    np.testing.assert_array_equal(rows, expected(events, vcpu=False))


def test_records_across_chunk_borders(make_events: Events, in_rounds: Rounds) -> None:
    events = make_events(6000)
    data = tw.PerfFile(in_rounds(events)).to_file()
    small, _ = read(data, chunk=SMALL)
    large, _ = read(data, chunk=1 << 24)
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("kind", [81, 83])
def test_compressed(make_events: Events, in_rounds: Rounds, kind: int) -> None:
    events = make_events(4000)
    records: list[bytes | tw.Event] = []
    plain = tw.PerfFile([])
    for start in range(0, len(events), 1000):
        part = sorted(events[start : start + 1000], key=lambda event: event.cpu)
        records.append(b"".join(plain.sample(event) for event in part))
    stream = b"".join(record for record in records if isinstance(record, bytes))
    packed = tw.compressed_records(stream, kind=kind)
    with_rounds: list[bytes | tw.Event] = []
    for number, record in enumerate(packed):
        with_rounds.append(record)
        if number % 9 == 8:
            with_rounds.append(tw.FINISHED_ROUND)
    for data in (tw.PerfFile(with_rounds).to_file(), tw.PerfFile(with_rounds).to_pipe()):
        rows, diagnosis = read(data)
        assert set(diagnosis.problems) <= {"event out of order"}
        np.testing.assert_array_equal(np.sort(rows, order="time_ns"), expected(events))


def test_lost_events_are_counted_and_located(make_events: Events) -> None:
    events: list[tw.Event | bytes] = [*make_events(100)]
    events.insert(50, tw.lost_record(17))
    rows, diagnosis = read(tw.PerfFile(events).to_file())
    assert diagnosis.lost == 17
    assert "offset 0x" in diagnosis.summary()[-1]
    assert rows.size == diagnosis.events
    with pytest.raises(TraceFormatError, match="17 events were lost"):
        read(tw.PerfFile(events).to_file(), strict=True)


def test_lost_samples_record(make_events: Events) -> None:
    record = struct.pack("<IHHQ", 13, 0, 16, 5)
    _, diagnosis = read(tw.PerfFile([*make_events(3), record]).to_file())
    assert diagnosis.lost == 5


def test_live_pipe_delivers_before_the_end(make_events: Events) -> None:
    events = make_events(400)
    records = [*events[:200], tw.FINISHED_ROUND, tw.FINISHED_ROUND]
    first = tw.PerfFile(records).to_pipe()
    second = b"".join(tw.PerfFile([]).sample(event) for event in events[200:])
    reading, writing = os.pipe()
    received: list[Rows] = []

    def consume() -> None:
        with os.fdopen(reading, "rb") as stream:
            received.extend(read_perf_data(stream, Diagnosis("pipe", strict=True), SMALL))

    with os.fdopen(writing, "wb", buffering=0) as stream:
        thread = threading.Thread(target=consume)
        thread.start()
        stream.write(first)
        thread.join(0.5)
        assert received, "the first round is delivered while the pipe is open"
        stream.write(second)
    thread.join(10)
    np.testing.assert_array_equal(np.concatenate(received), expected(events))


def test_file_form_from_a_stream_that_cannot_seek(make_events: Events, in_rounds: Rounds) -> None:
    events = make_events(500)
    stream = tw.OneWay(tw.PerfFile(in_rounds(events)).to_file())
    rows = np.concatenate(list(read_perf_data(stream, Diagnosis("pipe", strict=True))))
    np.testing.assert_array_equal(rows, expected(events))


def test_several_layouts_are_told_apart_by_id(make_events: Events) -> None:
    events = make_events(200)
    recording = tw.PerfFile(events)
    data = bytearray(recording.to_file())
    # The second event (kvm_entry) becomes a hardware event: its samples hold no tracepoint to read.
    attributes = struct.unpack_from("<Q", data, 24)[0]
    struct.pack_into("<I", data, attributes + 144, 0)
    rows, diagnosis = read(bytes(data))
    kept = [event for event in events if event.type is not tw.KVM_ENTRY]
    np.testing.assert_array_equal(rows, expected(kept))
    assert not diagnosis.problems


# Bad input


def test_damaged_record_is_located_and_the_rest_is_read(make_events: Events) -> None:
    events = make_events(1000)
    recording = tw.PerfFile(events)
    data = bytearray(recording.to_file())
    start = struct.unpack_from("<Q", data, 40)[0]
    offset = start + sum(len(recording.sample(event)) for event in events[:400])
    struct.pack_into("<H", data, offset + 6, 3)
    rows, diagnosis = read(bytes(data))
    assert diagnosis.problems["impossible record"] == 1
    assert f"offset {offset:#x}" in str(diagnosis.located[0])
    lost = expected(events).size - rows.size
    assert 0 <= lost <= 1


def test_truncated_data(make_events: Events) -> None:
    events = make_events(1000)
    pipe = tw.PerfFile(events).to_pipe()
    rows, diagnosis = read(pipe[:-30])
    assert rows.size in (expected(events).size - 1, expected(events).size)
    assert diagnosis.problems["truncated record"] == 1


def test_recording_that_was_killed(make_events: Events) -> None:
    data = bytearray(tw.PerfFile(make_events(100)).to_file())
    struct.pack_into("<Q", data, 48, 0)
    with pytest.raises(TraceFormatError, match="end perf with Ctrl-C"):
        read(bytes(data))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a perf.data file"),
        (b"PERFILE2", "not a perf.data file"),
        (b"2ELIFREP" + bytes(96), "big-endian"),
        (b"PERFILE2" + struct.pack("<Q", 104) + bytes(20), "truncated"),
        (b"PERFILE2" + struct.pack("<Q", 104) + bytes(88), "damaged"),
    ],
)
def test_foreign_files(data: bytes, match: str) -> None:
    with pytest.raises(TraceFormatError, match=match):
        read(data)


def test_truncated_header_never_breaks_it(make_events: Events) -> None:
    data = tw.PerfFile(make_events(20)).to_file()
    for length in range(0, len(data), 37):
        try:
            read(data[:length])
        except TraceFormatError as error:
            assert "\n" not in str(error)


# Against perf


def _perf_script(path: Path) -> list[tuple[int, int, str, dict[str, int]]]:
    if shutil.which("perf") is None:
        pytest.skip("needs perf (Debian: linux-perf)")
    command = ["perf", "script", "--ns", "-F", "tid,cpu,time,event,trace", "-i", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        match = re.match(r"\s*(\d+)\s+\[(\d+)\]\s+(\d+)\.(\d{9}):\s+kvm:(\w+):\s+(.*)", line)
        assert match, line
        words = match[6].split()
        values = {name: int(value, 16) for name, value in zip(words[::2], words[1::2], strict=True)}
        time = int(match[3]) * 10**9 + int(match[4])
        found.append((time, int(match[1]), match[5], {**values, "cpu": int(match[2])}))
    return found


@pytest.mark.parametrize("form", ["file", "pipe"])
def test_perf_prints_the_same(make_events: Events, in_rounds: Rounds, tmp_path: Path, form: str) -> None:
    recording = tw.PerfFile(in_rounds(make_events(2000)))
    data = recording.to_file() if form == "file" else recording.to_pipe()
    path = tmp_path / "perf.data"
    path.write_bytes(data)
    rows, _ = read(data)
    printed = [line for line in _perf_script(path) if line[2] in KINDS]
    assert [line[0] for line in printed] == rows["time_ns"].tolist()
    for row, (_, thread, name, values) in zip(rows, printed, strict=True):
        assert (row["thread"], row["cpu"], row["kind"]) == (thread, values["cpu"], KINDS[name])
        if name == "kvm_exit":
            for column, field in (
                ("reason", "exit_reason"),
                ("rip", "guest_rip"),
                ("info1", "info1"),
                ("vcpu", "vcpu_id"),
            ):
                assert row[column] == values[field]


@pytest.mark.parametrize(
    "options",
    [
        ["-e", "cpu-clock"],
        ["-e", "cpu-clock", "-z"],
        ["-e", "cpu-clock,task-clock", "-a", "-g", "-z"],
        ["-e", "cpu-clock", "-o", "-"],
        ["-e", "cpu-clock", "-z", "-o", "-"],
    ],
    ids=" ".join,
)
def test_a_recording_made_by_perf_here(tmp_path: Path, options: list[str]) -> None:
    if shutil.which("perf") is None:
        pytest.skip("needs perf (Debian: linux-perf)")
    path = tmp_path / "perf.data"
    busy = ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]
    target = [] if "-o" in options else ["-o", str(path)]
    command = ["perf", "record", "-q", "-F", "5000", *options, *target, "--", *busy]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"perf cannot record here: {done.stderr.decode().strip()[:200]}")
    if "-o" in options:
        path.write_bytes(done.stdout)
    script = subprocess.run(
        ["perf", "script", "-F", "event", "-i", str(path)], capture_output=True, text=True, check=True
    )
    rows, diagnosis = read(path.read_bytes(), strict=True)
    assert rows.size == 0
    assert diagnosis.others == script.stdout.count("-clock:")


def test_found_by_content(make_events: Events, in_rounds: Rounds, tmp_path: Path) -> None:
    """Through the trace room's front door: detection, assembly of rows, and totals."""
    from lzero.trace.load import open_recording

    events = make_events(2000)
    for name, data in (
        ("perf.data", tw.PerfFile(in_rounds(events)).to_file()),
        ("pipe", tw.PerfFile(in_rounds(events)).to_pipe()),
        ("trace.dat", tw.TraceDat(events, cpus=3).to_file()),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        recording = open_recording(str(path))
        rows = sum(len(batch) for batch in recording.rows())
        recording.close()
        assert rows == sum(event.type is tw.KVM_EXIT for event in events)
