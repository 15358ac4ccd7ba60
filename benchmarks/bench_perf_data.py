"""perf.data to the table of exits: lzero against perf itself, on the same file.

Usage: bench_perf_data.py [--millions 5] [--rounds 5] [--gib 0] [--no-script]

The recording is synthesised: exits and entries of eight VCPUs, in the rounds in which perf writes them. The commands
run in turn, so that a busy machine slows all of them. With --gib, a recording in pipe form of that size is made on
the fly and piped in; memory is that of the reader.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tracewriter import FINISHED_ROUND, KVM_ENTRY, KVM_EXIT, Event, PerfFile  # noqa: E402  # found by the line above

BLOCK_EVENTS = 100_000
REASONS = [32] * 45 + [49] * 20 + [12] * 10 + [1] * 8 + [52] * 5 + [7] * 3 + [30] * 3 + [48] * 2 + [10] * 2 + [31] * 2
CPUS = 8
ROUND_EVENTS = 2000
TIME_WORD = 4  # header, identifier, ip, tid, time


def make_block() -> tuple[PerfFile, int]:
    """A recording of some events, and the time it spans."""
    generator = random.Random(1)
    events: list[Event] = []
    now = 1_000_000_000
    while len(events) < BLOCK_EVENTS:
        now += generator.randrange(200, 1200)
        cpu = generator.randrange(CPUS)
        rip = 0xFFFF_FFFF_8100_0000 + generator.getrandbits(16)
        exit_values = {"exit_reason": generator.choice(REASONS), "guest_rip": rip, "isa": 1, "vcpu_id": cpu}
        events.append(Event(KVM_EXIT, now, cpu, 2000 + cpu, exit_values))
        later = now + generator.randrange(100, 190)
        events.append(Event(KVM_ENTRY, later, cpu, 2000 + cpu, {"vcpu_id": cpu, "rip": rip}))
    records: list[Event | bytes] = []
    for start in range(0, len(events), ROUND_EVENTS):
        records += sorted(events[start : start + ROUND_EVENTS], key=lambda event: event.cpu)
        records.append(FINISHED_ROUND)
    return PerfFile(records, types=(KVM_EXIT, KVM_ENTRY)), now + 2000 - 1_000_000_000


def copies(recording: PerfFile, span: int, count: int) -> Iterator[bytes]:
    """The recording's records so many times over, each time later."""
    words = np.frombuffer(recording.data(), "<u8").copy()
    place, times = 0, []
    while place < words.size:
        if int(words[place]) & 0xFFFF_FFFF == 9:
            times.append(place + TIME_WORD)
        place += int(words[place]) >> 51
    for _ in range(count):
        yield words.tobytes()
        words[times] += np.uint64(span)


def write_file(path: Path, recording: PerfFile, span: int, count: int) -> None:
    """The file form, with the data repeated."""
    once, data = recording.to_file(), recording.data()
    start = once.index(data)
    head, tail = bytearray(once[:start]), bytearray(once[start + len(data) :])
    struct.pack_into("<Q", head, 48, len(data) * count)
    for entry in range(2):
        (offset,) = struct.unpack_from("<Q", tail, 16 * entry)
        struct.pack_into("<Q", tail, 16 * entry, offset + len(data) * (count - 1))
    with path.open("wb") as file:
        file.write(head)
        for part in copies(recording, span, count):
            file.write(part)
        file.write(tail)


def measure(words: list[str], stdin: int | None = None) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MiB of a command and what it waits for."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def against_perf(folder: Path, millions: float, rounds: int, *, script: bool) -> None:
    """Interleaved runs; medians, and the spread of the ratios."""
    recording, span = make_block()
    path = folder / "perf.data"
    write_file(path, recording, span, max(1, round(millions * 1e6 / BLOCK_EVENTS)))
    pipeline = f"perf script -i {path} | awk '{{ n[$7]++ }} END {{ for (r in n) print r, n[r] }}'"
    commands = {"lzero trace show": [sys.executable, "-m", "lzero", "trace", "show", str(path)]}
    if shutil.which("perf"):
        commands["perf kvm stat report"] = ["perf", "kvm", "-i", str(path), "stat", "report"]
        if script:
            commands["perf script | awk"] = ["sh", "-c", pipeline]
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, words in commands.items():
            if name == "perf script | awk" and number > 1:
                continue
            result = measure(words)
            if number:
                runs[name].append(result)
    print(f"{millions:g} million events, {path.stat().st_size >> 20} MiB, {rounds} rounds")
    print(f"{'command':<24} {'wall s':>8} {'cpu s':>8} {'MiB':>6}   wall, as a multiple of lzero's")
    first = runs["lzero trace show"]
    for name, results in runs.items():
        ratios = [run[0] / own[0] for run, own in zip(results, first, strict=False)]
        wall, cpu, memory = (statistics.median(run[part] for run in results) for part in range(3))
        spread = f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:<24} {wall:8.2f} {cpu:8.2f} {memory:6.0f}   {spread}")


def stream(gib: float) -> None:
    """A stream made on the fly."""
    recording, span = make_block()
    head = recording.to_pipe()
    data = recording.data()
    count = max(1, round(gib * (1 << 30) / len(data)))
    reading, writing = os.pipe()
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "lzero", "trace", "show", "-"], stdin=reading, stdout=subprocess.DEVNULL
    )
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(head[: -len(data)])
        for part in copies(recording, span, count):
            pipe.write(part)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    seconds = time.perf_counter() - start
    events = count * BLOCK_EVENTS
    memory = usage.ru_maxrss / 1024
    print(f"{gib:g} GiB as a stream: {events / 1e6:.1f} million events in {seconds:.1f} s, {memory:.0f} MiB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--millions", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=0)
    parser.add_argument("--no-script", action="store_true", help="leave out perf script, which is slow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        against_perf(Path(folder), options.millions, options.rounds, script=not options.no_script)
    if options.gib:
        stream(options.gib)


if __name__ == "__main__":
    main()
