"""How long `lzero trace show`, `causes` and `diff` take on stored traces of many exits, and how much memory.

Usage: trace_store.py [--rows 100000000] [--directory DIR]

The two traces are made once (about 25 bytes a row on disk) and kept in the directory for the next run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lzero.trace.schema import numpy_dtype
from lzero.trace.store import to_frame

PART = 2_000_000
ROUND = np.array([10, 23, 23, 25, 24])  # L2 CPUID, then L1's VMREAD, VMREAD, VMWRITE, VMRESUME


def part(number: int, random: np.random.Generator) -> np.ndarray:
    """Nested rounds of five exits, every tenth L2 exit another reason, durations log-normal."""
    rows = np.zeros(PART, dtype=numpy_dtype())
    index = np.arange(PART)
    rows["seq"] = number * PART + index
    rows["reason"] = ROUND[index % 5]
    first = index % 5 == 0
    rows["reason"][first & (random.random(PART) < 0.1)] = 48
    rows["level"] = np.where(first, 2, 1)
    rows["parent"] = np.where(first, -1, rows["seq"] - index % 5)
    rows["parent_reason"] = np.where(first, -1, np.repeat(rows["reason"][::5], 5))
    rows["vcpu"] = (index // 5) % 4
    rows["rip"] = np.uint64(0xFFFFFFFF81000000) + random.integers(0, 5000, PART, dtype=np.uint64) * np.uint64(16)
    rows["vmcs_field"] = np.where(index % 5 == 1, 0x4402, -1)
    rows["host_ns"] = rows["seq"] * 2000
    rows["duration_ns"] = random.lognormal(7, 0.5, PART).astype(np.uint64)
    rows["handled_by"] = np.where(first, 2, 1)
    rows["isa"] = 1
    rows["cpu"] = rows["vcpu"]
    return rows


def make(directory: Path, rows: int, seed: int) -> None:
    """One trace as a folder of parts."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(rows // PART):
        target = directory / f"part-{number:04d}.parquet"
        if not target.exists():
            to_frame(part(number, random)).write_parquet(target, compression="lz4")


def timed(*words: str) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MiB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lzero", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Make the traces, run the commands, print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--directory", type=Path, default=Path("/tmp/lzero-benchmark-traces"))
    options = parser.parse_args()
    paths = [options.directory / f"{options.rows}-{name}" for name in "ab"]
    for seed, path in enumerate(paths):
        make(path, options.rows, seed)
    size = sum(file.stat().st_size for file in paths[0].iterdir())
    print(f"{options.rows} exits a trace, {size / options.rows:.1f} bytes an exit on disk")
    print(f"{'command':<28} {'seconds':>8} {'cpu s':>7} {'MiB':>7}   bound")
    for words, bound in (
        (["trace", "show", str(paths[0])], "5 s"),
        (["trace", "show", "--by", "rip", str(paths[0])], "-"),
        (["trace", "causes", str(paths[0])], "-"),
        (["trace", "diff", *map(str, paths)], "15 s"),
    ):
        seconds, processor, memory = timed(*words)
        name = " ".join(words[:2] if words[1] == "diff" else words[:-1])
        print(f"{name:<28} {seconds:>8.2f} {processor:>7.2f} {memory:>7.0f}   {bound}")


if __name__ == "__main__":
    main()
