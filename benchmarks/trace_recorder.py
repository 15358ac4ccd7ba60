"""What recording an exit costs: nanoseconds per `Recorder.record`, with and without a file, and memory over many
exits.

Usage: trace_recorder.py [--exits 2000000]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from lzero.trace.recorder import Recorder


def measure(path: Path | None, exits: int) -> tuple[float, float]:
    """Wall and processor nanoseconds per exit, closing included; the loop's own cost is taken off."""
    recorder = Recorder(path)
    record = recorder.record
    start, used = time.perf_counter(), time.process_time()
    for number in range(exits):
        record(number, -1, 0, 1, 10 + number % 5, 0, 0xFFFFFFFF81000000, 2, 0, 0, 0, -1, number, number * 900, 5000, 1)
    recorder.close()
    wall, processor = time.perf_counter() - start, time.process_time() - used
    start = time.perf_counter()
    for number in range(exits):
        _ = number * 900, 10 + number % 5
    loop = time.perf_counter() - start
    return (wall - loop) / exits * 1e9, (processor - loop) / exits * 1e9


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--exits", type=int, default=2_000_000)
    options = parser.parse_args()
    print(f"{'':<12} {'wall ns/exit':>13} {'cpu ns/exit':>12} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in (("totals only", None), ("with a file", Path(folder) / "t.parquet")):
            wall, processor = measure(path, options.exits)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{name:<12} {wall:>13.0f} {processor:>12.0f} {memory:>9.0f}")


if __name__ == "__main__":
    main()
