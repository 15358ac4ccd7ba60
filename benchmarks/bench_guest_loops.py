#!/usr/bin/env python3
"""Guest code that does not exit, under lzero and on the bare engine, in one run.

Each loop is the same bytes twice: in the bundled guest under `lzero.Machine`, and copied
out of that image into a bare Unicorn instance whose data lies on pages that are not executable.
Rounds alternate, the best of each counts; start-up is taken off by a second run with one iteration.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from dataclasses import dataclass
from time import perf_counter

from elftools.elf.elffile import ELFFile

from lzero import guests

CODE = 0x100000
STACK_TOP = 0x110000
DATA = 0x120000
TABLES = 0x1000
MAPPED = 0x200000


@dataclass(frozen=True)
class Loop:
    """One loop: the guest, how often, iterations of its report per count, and the ratio to reach."""

    name: str
    count: int
    per_count: int
    target: float


LOOPS = (
    Loop("integer", 200_000_000, 1, 1.1),
    Loop("memory", 4_000, 32768, 1.1),
    Loop("stores", 20_000_000, 1, 2.0),
)


def loop_bytes(name: str) -> bytes:
    """The bytes between the two symbols that the benchmark guests define around their loop."""
    with guests.path(f"bench_{name}").open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".symtab")
        start, end = (
            symbols.get_symbol_by_name(symbol)[0]["st_value"] for symbol in ("bench_loop_start", "bench_loop_end")
        )
        segment = elf.get_segment(0)
        offset: int = start - segment["p_vaddr"]
        data: bytes = segment.data()[offset : offset + end - start]
    return data


def run_bare(name: str, count: int) -> float:
    """Host seconds of the loop on Unicorn with nothing else."""
    import unicorn  # in a process of its own: lzero prepares the library for itself when it loads it
    from unicorn import x86_const as x86

    code = loop_bytes(name)
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(0, MAPPED)
    uc.mem_write(CODE, code)
    # Without paging every page counts as executable, and stores to such pages are slow.
    for level in range(3):
        table = TABLES + level * 0x1000
        uc.mem_write(table, (table + 0x1000 | 3).to_bytes(8, "little"))
    for page in range(512):
        no_execute = 0 if page == CODE >> 12 else 1 << 63
        uc.mem_write(TABLES + 0x3000 + page * 8, (page << 12 | 3 | no_execute).to_bytes(8, "little"))
    uc.reg_write(x86.UC_X86_REG_MSR, (0xC0000080, 0xD00))  # IA32_EFER: LME, LMA, NXE
    uc.reg_write(x86.UC_X86_REG_CR3, TABLES)
    uc.reg_write(x86.UC_X86_REG_CR4, 0x20)
    uc.reg_write(x86.UC_X86_REG_CR0, 0x80000001)
    uc.reg_write(x86.UC_X86_REG_RBX, DATA)
    # For the memory loop, the end of the guest's default buffer of 256 KiB.
    uc.reg_write(x86.UC_X86_REG_RDX, DATA + 256 * 1024)
    uc.reg_write(x86.UC_X86_REG_RSI, count)
    uc.reg_write(x86.UC_X86_REG_RAX, 0)
    uc.reg_write(x86.UC_X86_REG_RSP, STACK_TOP)
    started = perf_counter()
    uc.emu_start(CODE, CODE + len(code))
    return perf_counter() - started


def bare_seconds(loop: Loop, count: int) -> float:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--bare", loop.name, str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def guest_seconds(loop: Loop, count: int) -> float:
    """Host seconds of the whole guest run under lzero."""
    from lzero import Machine

    console = io.BytesIO()
    result = Machine(f"guest:bench_{loop.name}", (f"count={count}",), memory="64M", quiet=True, console=console).run()
    if result.debug_exit != 0:
        raise SystemExit(f"bench_{loop.name} ended by {result.ended}: {result.message} {console.getvalue()!r}")
    return result.host_seconds


def main() -> int:
    if sys.argv[1:2] == ["--bare"]:
        sys.stdout.write(f"{run_bare(sys.argv[2], int(sys.argv[3]))}\n")
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the iteration counts")
    parser.add_argument("loops", nargs="*", choices=[[], *(loop.name for loop in LOOPS)], help="which (default: all)")
    options = parser.parse_args()
    sys.stdout.write("| loop | under lzero, ns | bare engine, ns | ratio | target |\n|---|---|---|---|---|\n")
    for loop in LOOPS:
        if options.loops and loop.name not in options.loops:
            continue
        count = max(1, int(loop.count * options.scale))
        under, alone = [], []
        for _ in range(options.rounds):
            under.append(guest_seconds(loop, count) - guest_seconds(loop, 1))
            alone.append(bare_seconds(loop, count) - bare_seconds(loop, 1))
        iterations = count * loop.per_count
        mine, bare = min(under) / iterations * 1e9, min(alone) / iterations * 1e9
        sys.stdout.write(f"| {loop.name} | {mine:.3f} | {bare:.3f} | {mine / bare:.2f} | ≤ {loop.target} |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
