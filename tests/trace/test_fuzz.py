"""Damaged inputs of every text kind, through detection: what can be read is read, the rest is one clear error or a
count.

``LZERO_FUZZ`` sets how many inputs each test tries (100,000 for a night); the default keeps the suite quick.
"""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest

from lzero.errors import TraceFormatError
from lzero.trace.frames import collect
from lzero.trace.load import open_recording
from lzero.trace.recorder import Recorder
from lzero.trace.store import open_trace
from textwriter import EVENT_FORMATS, LINE_FORMATS, random_event, render

INPUTS = int(os.environ.get("LZERO_FUZZ", "400"))
COUNTS = (
    b"@exits[48]: 1234\n@exits[HLT]: 6\n@x[1, 2]: 3\n",
    b"  VM-EXIT Samples Samples% Time% Min Time Max Time Avg time\n HLT 10 5.0% 1.2% 0.5us 1.2us 1.0us ( +- 0.5% )\n",
    b"PID TID KVM_EXIT_REASON COUNT\n12 13 HLT 5\n",
    b" kvm_exit(HLT) 60 30.0 6\n kvm_entry 100\n",
    b"reason,count\nHLT,5\n",
)


def sample(source: random.Random) -> bytes:
    if source.random() < 0.3:
        return source.choice(COUNTS)
    events = [random_event(source, number * 10**6) for number in range(source.randint(1, 6))]
    return render(events, source.choice(LINE_FORMATS), source.choice(EVENT_FORMATS))


def damage(source: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(source.randint(1, 8)):
        place = source.randrange(len(data) + 1)
        what = source.randrange(5)
        if what == 0:
            data[place:place] = source.randbytes(source.choice([1, 2, 8, 200]))
        elif what == 1:
            del data[place : place + source.choice([1, 3, 50])]
        elif what == 2 and place < len(data):
            data[place] = source.choice(b"\n\r\t \0:[]%9.-x\xff")
        elif what == 3:
            data[place:place] = data[: source.randrange(200)]
        else:
            data[place:place] = str(source.choice([2**16, 2**31, 2**32, 2**64, 10**30])).encode()
    return bytes(data)


@pytest.mark.parametrize("native", ["0", "1"])
def test_damaged_text_is_read_or_refused_and_never_a_traceback(
    native: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LZERO_NATIVE", native)
    source = random.Random(int(native))
    path = tmp_path / "input"
    for _ in range(INPUTS):
        content = damage(source, sample(source))
        if source.random() < 0.05:
            content = gzip.compress(content)[: source.choice([None, -3, 20])]
        path.write_bytes(content)
        for strict in (False, True):
            try:
                recording = open_recording(str(path), strict=strict)
            except TraceFormatError:
                continue
            try:
                aggregates = recording.aggregates()
            except TraceFormatError:
                assert strict
            else:
                assert sum(totals.count for totals in aggregates.exits.values()) <= max(recording.diagnosis.events, 0)
            finally:
                recording.close()


def test_damaged_parquet_is_a_clear_error_or_readable(tmp_path: Path) -> None:
    whole = tmp_path / "t.parquet"
    with Recorder(whole) as recorder:
        for number in range(50):
            recorder.record(number, -1, 0, 1, 10, 0, 0, 2, 0, 0, 0, -1, 0, number, 5, 1)
    content = whole.read_bytes()
    source = random.Random(5)
    path = tmp_path / "damaged.parquet"
    for _ in range(INPUTS // 2):
        path.write_bytes(b"PAR1" + damage(source, content[4:]))
        try:
            collect(open_trace(path))
        except TraceFormatError:
            continue
