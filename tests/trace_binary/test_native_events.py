"""The native library does exactly what the numpy code and the assembler do."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracewriter as tw
from lzero.trace.aggregates import Aggregates, add_rows
from lzero.trace.assemble import Assembler
from lzero.trace.readers.binary.fields import Rows
from lzero.trace.readers.binary.native import NativeTotals, library, order_rows
from lzero.trace.readers.binary.ordering import TimeOrder
from lzero.trace.readers.events import Diagnosis, EventKind, event_dtype
from lzero.trace.readers.perf_data import read_perf_data
from lzero.trace.readers.trace_dat import read_trace_dat

Events = Callable[..., list[tw.Event]]
Rounds = Callable[..., list[tw.Event | bytes]]


@pytest.fixture(autouse=True)
def _needs_library() -> None:
    if library() is None:
        pytest.skip("needs a C compiler")


def _read(data: bytes) -> tuple[Rows, Diagnosis]:
    diagnosis = Diagnosis("test")
    batches = list(read_perf_data(io.BytesIO(data), diagnosis, 1 << 17))
    return np.concatenate([np.zeros(0, event_dtype()), *batches]), diagnosis


@pytest.mark.parametrize("added", [0, tw.CALLCHAIN, tw.READ | tw.CALLCHAIN])
def test_decoding(make_events: Events, in_rounds: Rounds, monkeypatch: pytest.MonkeyPatch, added: int) -> None:
    records = in_rounds(make_events(4000))
    records.insert(900, tw.lost_record(4))
    data = tw.PerfFile(records, sample_type=tw.DEFAULT_SAMPLE | added, read_format=1 | 4 | 8 if added else 0).to_file()
    native, native_diagnosis = _read(data)
    monkeypatch.setenv("LZERO_NATIVE", "0")
    plain, plain_diagnosis = _read(data)
    np.testing.assert_array_equal(native, plain)
    assert native_diagnosis == plain_diagnosis


def test_decoding_of_damaged_recordings(make_events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(5)
    whole = tw.PerfFile(make_events(300)).to_file()
    start = int.from_bytes(whole[40:48], "little")
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(3):
            data[generator.randrange(start, start + 30_000)] = generator.choice((0, 1, 8, 9, 255))
        monkeypatch.setenv("LZERO_NATIVE", "1")
        native, native_diagnosis = _read(bytes(data))
        monkeypatch.setenv("LZERO_NATIVE", "0")
        plain, plain_diagnosis = _read(bytes(data))
        np.testing.assert_array_equal(native, plain)
        assert native_diagnosis.others == plain_diagnosis.others
        assert native_diagnosis.problems == plain_diagnosis.problems


def _read_pages(data: bytes) -> tuple[Rows, Diagnosis]:
    diagnosis = Diagnosis("test")
    batches = list(read_trace_dat(io.BytesIO(data), diagnosis, 1 << 17))
    return np.concatenate([np.zeros(0, event_dtype()), *batches]), diagnosis


@pytest.mark.parametrize("options", [{}, {"stamps": True}, {"discard": True}, {"missed": {(0, 3): 5, (1, 2): 0}}])
def test_pages(make_events: Events, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    data = tw.TraceDat(make_events(4000), cpus=3, **options).to_file()
    native, native_diagnosis = _read_pages(data)
    monkeypatch.setenv("LZERO_NATIVE", "0")
    plain, plain_diagnosis = _read_pages(data)
    np.testing.assert_array_equal(native, plain)
    assert native_diagnosis == plain_diagnosis


def test_damaged_pages(make_events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(6)
    recording = tw.TraceDat(make_events(600), cpus=3)
    whole = recording.to_file()
    start = whole.index(recording.pages(0)[0])
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(4):
            data[generator.randrange(start, len(data))] = generator.choice((0, 1, 8, 28, 29, 30, 31, 61, 255))
        monkeypatch.setenv("LZERO_NATIVE", "1")
        native, native_diagnosis = _read_pages(bytes(data))
        monkeypatch.setenv("LZERO_NATIVE", "0")
        plain, plain_diagnosis = _read_pages(bytes(data))
        np.testing.assert_array_equal(np.sort(native), np.sort(plain))
        assert native_diagnosis.others == plain_diagnosis.others
        assert native_diagnosis.problems == plain_diagnosis.problems


@pytest.mark.parametrize("span", [1, 1000, 1 << 31, 1 << 40, (1 << 64) - 1])
def test_order(span: int) -> None:
    generator = np.random.default_rng(span % 1000)
    rows = np.zeros(20_000, event_dtype())
    rows["time_ns"] = generator.integers(0, span, rows.size, dtype=np.uint64, endpoint=True)
    rows["rip"] = np.arange(rows.size)
    ordered = order_rows([rows[:7000], rows[7000:]])
    assert ordered is not None
    np.testing.assert_array_equal(ordered, rows[np.argsort(rows["time_ns"], kind="stable")])


def test_order_with_bounded_memory() -> None:
    rows = np.zeros(1000, event_dtype())
    rows["time_ns"] = np.arange(1000)[::-1]
    order = TimeOrder(limit=100)
    order.add(rows)
    older = order.overflow()
    assert older is not None
    assert older["time_ns"].tolist() == list(range(501))
    late = np.zeros(1, event_dtype())
    order.add(late)
    rest = order.drain()
    assert rest is not None
    assert rest.size == 500
    assert order.late == 1


def _random_events(seed: int, count: int) -> Rows:
    generator = np.random.default_rng(seed)
    rows = np.zeros(count, event_dtype())
    rows["kind"] = generator.choice(
        [EventKind.EXIT, EventKind.ENTRY, EventKind.NESTED_VMEXIT, EventKind.NESTED_INJECT, EventKind.NESTED_VMENTER],
        count,
        p=[0.4, 0.35, 0.1, 0.05, 0.1],
    )
    rows["isa"] = generator.choice([1, 2], count, p=[0.9, 0.1])
    rows["thread"] = generator.choice([-1, 100, 101, 102], count)
    rows["vcpu"] = generator.integers(0, 3, count)
    rows["time_ns"] = np.cumsum(generator.integers(0, 300, count))
    rows["reason"] = generator.choice([1, 10, 12, 20, 24, 30, 48, 50, 0x80, 0x83, 0x8000_0021], count)
    backwards = generator.random(count) < 0.01
    rows["time_ns"][backwards] -= 200
    return rows


def _assembled(events: list[Rows]) -> tuple[Aggregates, Diagnosis]:
    diagnosis = Diagnosis("test")
    assembler = Assembler(diagnosis)
    aggregates = Aggregates()
    for batch in events:
        add_rows(aggregates, assembler.feed(batch))
    add_rows(aggregates, assembler.finish())
    return aggregates, diagnosis


@pytest.mark.parametrize("seed", range(12))
def test_totals(seed: int) -> None:
    rows = _random_events(seed, 5000)
    batches = [rows[:1], rows[1:40], rows[40:3000], rows[3000:]]
    expected, expected_diagnosis = _assembled([rows])
    native = library()
    assert native is not None
    totals = NativeTotals(native)
    for batch in batches:
        totals.feed(batch)
    diagnosis = Diagnosis("test")
    found = totals.finish(diagnosis)
    assert set(found.exits) == set(expected.exits)
    for key, value in expected.exits.items():
        mine = found.exits[key]
        assert (mine.count, mine.timed, mine.total_ns, mine.min_ns, mine.max_ns) == (
            value.count,
            value.timed,
            value.total_ns,
            value.min_ns,
            value.max_ns,
        )
        assert mine.squares == pytest.approx(value.squares)
    assert found.reflected == expected.reflected
    assert found.caused == expected.caused
    assert diagnosis.problems == expected_diagnosis.problems


def test_no_events_no_totals() -> None:
    native = library()
    assert native is not None
    assert NativeTotals(native).finish(Diagnosis("test")) == Aggregates()
