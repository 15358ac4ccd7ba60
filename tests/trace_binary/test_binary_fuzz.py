"""Damaged recordings: whatever the bytes, a reader ends with rows and a diagnosis, or with one TraceFormatError.

The number of inputs per run is small; ``LZERO_FUZZ=100000`` in the environment sets another for each test.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from test_trace_dat import zlib_version_7

import tracewriter as tw
from covfuzz import CoverageFuzzer
from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.fields import Rows
from lzero.trace.readers.binary.walk import walk_records
from lzero.trace.readers.events import Diagnosis
from lzero.trace.readers.perf_data import read_perf_data
from lzero.trace.readers.trace_dat import read_trace_dat

Events = Callable[..., list[tw.Event]]
Reader = Callable[[io.BytesIO, Diagnosis], Iterator[Rows]]
INPUTS = int(os.environ.get("LZERO_FUZZ", "500"))


def _reads(reader: Reader) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        try:
            for rows in reader(io.BytesIO(data), Diagnosis("damaged")):
                assert rows.size
        except TraceFormatError as error:
            assert "\n" not in str(error)

    return target


@pytest.mark.parametrize("native", ["0", "1"])
def test_damaged_perf_data(make_events: Events, monkeypatch: pytest.MonkeyPatch, native: str) -> None:
    monkeypatch.setenv("LZERO_NATIVE", native)
    events = make_events(24)
    plain = tw.PerfFile([*events, tw.FINISHED_ROUND, tw.lost_record(3), *events[:3]])
    many = tw.PerfFile(events, sample_type=tw.DEFAULT_SAMPLE | tw.CALLCHAIN | tw.READ, read_format=1 | 4 | 8)
    packed = tw.PerfFile(tw.compressed_records(plain.data(), 700))
    seeds = [plain.to_file(), plain.to_pipe(), many.to_pipe(), packed.to_file(), packed.to_pipe()]
    fuzzer = CoverageFuzzer(_reads(read_perf_data), "lzero/trace/readers", corpus=list(seeds))
    fuzzer.run(INPUTS)
    assert len(fuzzer.corpus) > len(seeds)


@pytest.mark.parametrize("native", ["0", "1"])
def test_damaged_trace_dat(make_events: Events, monkeypatch: pytest.MonkeyPatch, native: str) -> None:
    monkeypatch.setenv("LZERO_NATIVE", native)
    dat = tw.TraceDat(make_events(24), cpus=3, missed={(0, 0): 2})
    seeds = [dat.to_file(), zlib_version_7(dat)]
    fuzzer = CoverageFuzzer(_reads(read_trace_dat), "lzero/trace/readers", corpus=list(seeds))
    fuzzer.run(INPUTS)
    assert len(fuzzer.corpus) > len(seeds)


def test_walk_is_exactly_the_plain_loop() -> None:
    """Whatever the words, the lanes find the records that following the sizes one by one finds."""
    generator = np.random.default_rng(3)
    for _ in range(200):
        count = int(generator.integers(1, 4000))
        sizes = generator.integers(1, 40, count).astype(np.uint64)
        words = (sizes << np.uint64(51)) | np.uint64(9)
        words[generator.random(count) < 0.002] = generator.integers(0, 1 << 63)
        walk = walk_records(words, frozenset({71}))
        starts, place, stopped = [], 0, False
        while place < count:
            size, odd = divmod(int(words[place]) >> 48, 8)
            if size == 0 or odd or int(words[place]) & 0xFFFF_FFFF == 71:
                stopped = True
                break
            if place + size > count:
                break
            starts.append(place)
            place += size
        assert walk.starts.tolist() == starts
        assert (walk.end, walk.stopped) == (place, stopped)
