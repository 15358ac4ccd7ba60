"""trace.dat: every version and packing gives the events that were written, and trace-cmd prints the same."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_perf_data import KINDS, expected

import tracewriter as tw
from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.fields import Rows
from lzero.trace.readers.events import Diagnosis, event_dtype
from lzero.trace.readers.trace_dat import is_trace_dat, read_trace_dat

Events = Callable[..., list[tw.Event]]


def read(data: bytes, strict: bool = False, chunk: int = 1 << 25) -> tuple[Rows, Diagnosis]:
    """All events of a recording, and the diagnosis."""
    diagnosis = Diagnosis("test", strict=strict)
    batches = list(read_trace_dat(io.BytesIO(data), diagnosis, chunk))
    return np.concatenate([np.zeros(0, event_dtype()), *batches]), diagnosis


def convert(tmp_path: Path, data: bytes, compression: str) -> bytes:
    """The recording in version 7, by trace-cmd."""
    if shutil.which("trace-cmd") is None:
        pytest.skip("needs trace-cmd")
    source, target = tmp_path / "6.dat", tmp_path / "7.dat"
    source.write_bytes(data)
    command = ["trace-cmd", "convert", "-i", str(source), "-o", str(target), "--file-version", "7"]
    done = subprocess.run([*command, "--compression", compression], capture_output=True, text=True, check=False)
    if done.returncode or not target.exists():
        pytest.skip(f"trace-cmd here cannot convert to version 7 with {compression}")
    return target.read_bytes()


@pytest.mark.parametrize("options", [{}, {"stamps": True}, {"discard": True}])
def test_version_6(make_events: Events, options: dict[str, bool]) -> None:
    events = make_events(5000)
    data = tw.TraceDat(events, cpus=3, **options).to_file()
    assert is_trace_dat(data[:10])
    rows, diagnosis = read(data, strict=True)
    np.testing.assert_array_equal(rows, expected(events))
    assert diagnosis.others == sum(event.type is tw.KVM_MSR for event in events)


def test_small_blocks_give_the_same(make_events: Events) -> None:
    data = tw.TraceDat(make_events(20_000), cpus=3).to_file()
    np.testing.assert_array_equal(read(data, chunk=1)[0], read(data)[0])


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_version_7(make_events: Events, tmp_path: Path, compression: str) -> None:
    events = make_events(5000)
    data = convert(tmp_path, tw.TraceDat(events, cpus=3).to_file(), compression)
    rows, _ = read(data, strict=True)
    np.testing.assert_array_equal(rows, expected(events))


def test_version_7_with_zlib(make_events: Events, tmp_path: Path) -> None:
    """Debian's trace-cmd has no zlib; a file of version 7 is packed anew with it."""
    events = make_events(2000)
    rows, _ = read(zlib_version_7(tw.TraceDat(events, cpus=3)), strict=True)
    np.testing.assert_array_equal(rows, expected(events))


def zlib_version_7(recording: tw.TraceDat) -> bytes:
    """A recording as a file of version 7 that is packed with zlib."""
    start = b"\x17\x08\x44tracing7\0" + struct.pack("<BBI", 0, 8, tw.PAGE) + b"zlib\x001.2\0"
    out = bytearray(start + bytes(8))
    options = b""

    def section(number: int, body: bytes) -> int:
        place = len(out)
        packed = zlib.compress(body)
        out.extend(
            struct.pack("<HHIQ", number, 1, 0, len(packed) + 8) + struct.pack("<II", len(packed), len(body)) + packed
        )
        return place

    for option, body in (
        (16, tw.header_info()),
        (17, struct.pack("<I", 0)),
        (18, tw.event_formats(recording.types)),
    ):
        options += struct.pack("<HIQ", option, 8, section(option, body))
    buffer = len(out)
    out.extend(struct.pack("<HHIQ", 3, 1, 0, 0))
    cpus = b""
    for cpu in range(recording.cpus):
        chunk = b"".join(recording.pages(cpu))
        halves = [chunk[: len(chunk) // 2 // tw.PAGE * tw.PAGE], chunk[len(chunk) // 2 // tw.PAGE * tw.PAGE :]]
        body = struct.pack("<I", len(halves))
        for half in halves:
            packed = zlib.compress(half)
            body += struct.pack("<II", len(packed), len(half)) + packed
        cpus += struct.pack("<IQQ", cpu, len(out), len(body))
        out.extend(body)
    data = struct.pack("<Q", buffer) + b"\0local\0" + struct.pack("<II", tw.PAGE, recording.cpus) + cpus
    options += struct.pack("<HI", 3, len(data)) + data + struct.pack("<HIQ", 0, 8, 0)
    struct.pack_into("<Q", out, len(start), section(0, options))
    return bytes(out)


def test_stream_that_cannot_seek(make_events: Events) -> None:
    events = make_events(500)
    reading = tw.OneWay(tw.TraceDat(events, cpus=3).to_file())
    rows = np.concatenate(list(read_trace_dat(reading, Diagnosis("pipe", strict=True))))
    np.testing.assert_array_equal(rows, expected(events))


def test_missed_events_are_counted_and_located(make_events: Events) -> None:
    events = make_events(3000)
    rows, diagnosis = read(tw.TraceDat(events, cpus=3, missed={(0, 3): 5, (1, 2): 0}).to_file())
    np.testing.assert_array_equal(rows, expected(events))
    assert diagnosis.lost == 5
    assert diagnosis.problems["lost events"] == 2
    assert all("offset 0x" in line for line in diagnosis.summary()[2:])


def test_clock_that_is_no_time(make_events: Events) -> None:
    _, diagnosis = read(tw.TraceDat(make_events(10), clock="counter").to_file())
    assert "counter" in diagnosis.summary()[-1]


@pytest.mark.parametrize("version", ["6", "7"])
def test_trace_cmd_prints_the_same(make_events: Events, tmp_path: Path, version: str) -> None:
    if shutil.which("trace-cmd") is None:
        pytest.skip("needs trace-cmd")
    data = tw.TraceDat(make_events(2000), cpus=3).to_file()
    if version == "7":
        data = convert(tmp_path, data, "zstd")
    path = tmp_path / "trace.dat"
    path.write_bytes(data)
    rows, _ = read(data)
    command = ["trace-cmd", "report", "-t", "-R", "-i", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = []
    for line in done.stdout.splitlines():
        match = re.match(r"\s*\S+-(\d+)\s+\[(\d+)\]\s+(\d+)\.(\d{9}):\s+(\w+):\s+(.*)", line)
        if match and match[5] in KINDS:
            printed.append((int(match[3]) * 10**9 + int(match[4]), int(match[1]), int(match[2]), match[5], match[6]))
    assert len(printed) == rows.size
    for row, (time, thread, cpu, name, text) in zip(rows, printed, strict=True):
        assert (row["time_ns"], row["thread"], row["cpu"], row["kind"]) == (time, thread, cpu, KINDS[name])
        if name == "kvm_exit":
            values = dict(re.findall(r"(\w+)=(0x[0-9a-f]+|\d+)", text))
            assert row["reason"] == int(values["exit_reason"], 0)
            assert row["rip"] == int(values["guest_rip"], 0)


# Bad input


def test_damaged_page_is_located_and_the_rest_is_read(make_events: Events) -> None:
    recording = tw.TraceDat(make_events(3000), cpus=3)
    data = bytearray(recording.to_file())
    pages = recording.pages(0)
    page = data.index(pages[2])
    struct.pack_into("<I", data, page + 16, 28 | 7 << 5)
    struct.pack_into("<Q", data, page + 8, 60)
    rows, diagnosis = read(bytes(data))
    assert diagnosis.problems["damaged page"] == 1
    assert f"offset {page:#x}" in str(diagnosis.located[0])
    assert rows.size > 2000


def test_truncated_pages(make_events: Events) -> None:
    data = tw.TraceDat(make_events(3000), cpus=3).to_file()
    rows, diagnosis = read(data[: -tw.PAGE - 100])
    assert diagnosis.problems["truncated file"] == 1
    assert rows.size > 1500
    with pytest.raises(TraceFormatError, match="bytes of CPU 2 are missing"):
        read(data[: -tw.PAGE - 100], strict=True)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a trace.dat"),
        (b"\x17\x08\x44tracing", "does not end"),
        (b"\x17\x08\x44tracing9\0" + bytes(6), "versions 6 and 7"),
        (b"\x17\x08\x44tracing6\0\x01" + bytes(5), "big-endian"),
        (b"\x17\x08\x44tracing6\0\0\x08\0\x10\0\0", "does not end|truncated"),
        (b"\x17\x08\x44tracing7\0\0\x08\0\x10\0\0lz4\x001\0" + bytes(8), "describes no events"),
    ],
)
def test_foreign_files(data: bytes, match: str) -> None:
    with pytest.raises(TraceFormatError, match=match):
        read(data)


def test_truncated_header_never_breaks_it(make_events: Events) -> None:
    data = tw.TraceDat(make_events(20), cpus=3).to_file()
    for length in range(0, len(data), 41):
        try:
            read(data[:length])
        except TraceFormatError as error:
            assert "\n" not in str(error)
