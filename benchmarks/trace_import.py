"""Text import: lines per second on all cores, peak memory, and how neither depends on the length of the input.

Usage: trace_import.py [--lines 4000000] [--gib 0]

The input is a synthesised nested recording, 38 % kvm_exit lines as long as today's kernels print them. With --gib,
a stream of that size is made on the fly and piped into `lzero trace show -`; memory is that of the reader.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from textwriter import nested_events, render  # noqa: E402  # the tests' writer, found by the line above

ROUNDS = 20_000


def run(words: list[str], source: bytes | None = None, repeat: int = 1) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MiB of a command, `source` piped in `repeat` times."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "lzero", *words],
        stdin=subprocess.PIPE if source else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if source is not None:
        assert process.stdin is not None
        for _ in range(repeat):
            process.stdin.write(source)
        process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def report(name: str, lines: int, seconds: float, processor: float, memory: float) -> None:
    """Print a row."""
    print(f"{name:<34} {lines:>11} {seconds:>8.2f} {lines / seconds / 1e6:>10.2f} {processor:>7.2f} {memory:>6.0f}")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=4_000_000)
    parser.add_argument("--gib", type=float, default=0)
    options = parser.parse_args()
    block = render(nested_events(ROUNDS), "perf")
    lines = block.count(b"\n")
    print(f"{'what':<34} {'lines':>11} {'seconds':>8} {'M lines/s':>10} {'cpu s':>7} {'MiB':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for repeat in (1, max(1, options.lines // lines)):
            path = Path(folder) / "perf.txt"
            with path.open("wb") as file:
                for _ in range(repeat):
                    file.write(block)
            for words in (["trace", "show", str(path)], ["trace", "import", str(path), "-o", str(Path(folder) / "t")]):
                seconds, processor, memory = run(words)
                total = lines * repeat
                name = f"lzero trace {words[1]}"
                report(name, total, seconds, processor, memory)
    if options.gib:
        repeat = int(options.gib * 2**30 / len(block))
        seconds, processor, memory = run(["trace", "show", "-"], block, repeat)
        total = lines * repeat
        name = f"{options.gib:g} GiB through a pipe"
        report(name, total, seconds, processor, memory)


if __name__ == "__main__":
    main()
