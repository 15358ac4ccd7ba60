#!/usr/bin/env python3
"""Exits per second: trap → exit → recorded → dispatch → handler → entry, against the engine's own floor.

The floor is a guest that executes CPUID under the engine alone: a trap into Python that moves RIP on. Both are measured
in one run, alternating, so that their ratio means something on a machine that is shared. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import io
import mmap
import pstats
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from time import process_time

from lzero import Machine
from lzero.cpu.engine import Action, Engine, Trap
from lzero.cpu.layout import VMCS_WORDS, position
from lzero.sdm.vmcs_fields import Field

PAGE_TABLES, CODE = 0x1000, 0x10_0000
LOOP = bytes.fromhex("0fa2ebfc")  # l: cpuid; jmp l


def floor_seconds(count: int) -> float:
    """Seconds for `count` traps of the engine alone."""
    words = (ctypes.c_uint64 * VMCS_WORDS)()
    view = memoryview(words).cast("B").cast("Q")
    rip = position(Field.GUEST_RIP)
    left = count

    def on_trap(code: int) -> int:
        nonlocal left
        if code == Trap.CPUID:
            left -= 1
            view[rip] += 2
        return Action.ENTER if left else Action.STOP

    engine = Engine(on_trap)
    memory = mmap.mmap(-1, 4 << 20)
    memory[PAGE_TABLES : PAGE_TABLES + 8] = (0x2003).to_bytes(8, "little")
    memory[0x2000:0x2008] = (0x83).to_bytes(8, "little")
    memory[CODE : CODE + len(LOOP)] = LOOP
    engine.map_memory(0, memory, 0, len(memory))
    state = {Field.GUEST_CR0: 0x8000_0031, Field.GUEST_CR3: PAGE_TABLES, Field.GUEST_CR4: 0x2020, rip: CODE}
    for field, value in {**state, Field.GUEST_IA32_EFER: 0x500, Field.GUEST_RFLAGS: 2, Field.GUEST_DR7: 0x400}.items():
        view[position(field) if isinstance(field, Field) else field] = value
    view[position(Field.GUEST_CS_ACCESS_RIGHTS)], view[position(Field.GUEST_CS_LIMIT)] = 0xA09B, 0xFFFF_FFFF
    view[position(Field.GUEST_SS_ACCESS_RIGHTS)], view[position(Field.GUEST_SS_LIMIT)] = 0xC093, 0xFFFF_FFFF
    view[position(Field.GUEST_TR_ACCESS_RIGHTS)] = 0x8B
    engine.set_vmcs(words)
    for name, value in (
        ("maxphyaddr", 39),
        ("budget", 1 << 40),
        ("intercept", (1 << 64) - 1),
        ("tsc_multiplier", 1 << 48),
    ):
        engine.slots[engine.slot[name]] = value
    start = process_time()
    engine.run()
    seconds = process_time() - start
    engine.close()
    return seconds


def loop_seconds(count: int, record: Path | None = None) -> float:
    """Seconds for `count` CPUID exits of the whole machine, start-up taken off."""

    def run(times: int) -> float:
        machine = Machine(
            "guest:bench_cpuid", (f"count={times}",), memory="64M", quiet=True, console=io.BytesIO(), record=record
        )
        start = process_time()
        result = machine.run()
        if result.debug_exit != 0:
            raise SystemExit(f"bench_cpuid: {result.ended} {result.message}")
        return process_time() - start

    return run(count) - run(1)


def soak(count: int) -> str:
    """Peak memory while `count` exits are recorded, after a tenth of them and after all."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for share in (count // 10, count - count // 10):
            loop_seconds(share, Path(folder) / "soak.parquet")
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return f"peak memory: {peaks[0]:.0f} MiB after {count // 10:,} recorded exits, {peaks[1]:.0f} MiB after {count:,}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000, help="exits per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=int, metavar="EXITS", help="record so many exits and print the peak memory")
    parser.add_argument("--profile", action="store_true", help="print where the time of the loop goes")
    options = parser.parse_args()
    count, write = options.count, sys.stdout.write
    if options.soak:
        write(soak(options.soak))
        return 0
    floors, plain, recorded = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            floors.append(floor_seconds(count))
            plain.append(loop_seconds(count))
            recorded.append(loop_seconds(count, Path(folder) / f"{number}.parquet"))
    write("| what | median | best | target |\n|---|---|---|---|\n")

    def row(name: str, values: list[float], target: str) -> None:
        write(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {target} |\n")

    row("floor: one trap into Python and back, µs", [s / count * 1e6 for s in floors], "")
    row("one CPUID exit, µs", [s / count * 1e6 for s in plain], "≤ 10")
    row("the exit as a multiple of the floor", [p / f for p, f in zip(plain, floors, strict=True)], "")
    row("the same with --record, as a multiple", [r / p for r, p in zip(recorded, plain, strict=True)], "≤ 1.15")
    write(f"\nexits per second of processor time: {count / statistics.median(plain):,.0f} (target 100,000)\n")
    if options.profile:
        profile = cProfile.Profile()
        profile.enable()
        loop_seconds(count // 4)
        profile.disable()
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(16)
        write("\n" + text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
