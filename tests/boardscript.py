"""Scripts of port and MMIO accesses that run on a board of ours and, inside a small kernel, on QEMU.

The kernel reads 16-byte records (operation, address, value, size) from its multiboot module and writes every result
as 32 bits to the debug console, so that two machines can be compared access by access.
"""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from keystone import KS_ARCH_X86, KS_MODE_32, Ks

from bootimages import Elf, MultibootHeader
from pcboard import Board

LOAD, GDT, IDT, STUBS = 0x100000, 0x100FE8, 0x101000, 0x101800
DEBUG_CONSOLE, SERIAL = 0xE9, 0x3F8
COUNTER = 0x80000
TAKE_LIMIT = 20
"""Interrupts that one TAKE receives at most: a storm must not hang the other machine."""
NOTHING_MORE = 0xFFFF_FFFF


class Op(IntEnum):
    """What a record does."""

    END = 0
    IN = 1
    OUT = 2
    READ = 3
    WRITE = 4
    TAKE = 5


@dataclass(frozen=True)
class Step:
    """One access. ``TAKE`` lets the processor receive every interrupt that is deliverable, without EOI."""

    op: Op
    address: int = 0
    value: int = 0
    size: int = 4

    def __str__(self) -> str:
        return f"{self.op.name} {self.address:#x} {self.value:#x} ({self.size})"


def _source(output: int) -> str:
    return f"""
        cli
        mov esp, 0x90000
        mov edi, [ebx + 24]
        mov esi, [edi]
        push {GDT}
        push {0x17 << 16}
        lgdt [esp + 2]
        push {IDT}
        push {0x7FF << 16}
        lidt [esp + 2]
    next:
        mov eax, [esi]
        mov edx, [esi + 4]
        mov ecx, [esi + 8]
        mov ebp, [esi + 12]
        add esi, 16
        cmp eax, {Op.IN}
        je do_in
        cmp eax, {Op.OUT}
        je do_out
        cmp eax, {Op.READ}
        je do_read
        cmp eax, {Op.WRITE}
        je do_write
        cmp eax, {Op.TAKE}
        je do_take
        mov eax, 0
        out 0xf4, eax
    stop:
        hlt
        jmp stop
    do_in:
        xor eax, eax
        cmp ebp, 1
        jne in_2
        in al, dx
        jmp emit
    in_2:
        cmp ebp, 2
        jne in_4
        in ax, dx
        jmp emit
    in_4:
        in eax, dx
    emit:
        call put
        jmp next
    do_out:
        mov eax, ecx
        cmp ebp, 1
        jne out_2
        out dx, al
        jmp next
    out_2:
        cmp ebp, 2
        jne out_4
        out dx, ax
        jmp next
    out_4:
        out dx, eax
        jmp next
    do_read:
        mov eax, [edx]
        jmp emit
    do_write:
        mov [edx], ecx
        jmp next
    do_take:
        mov dword ptr [{COUNTER}], {TAKE_LIMIT}
        sti
        mov ecx, 100
    spin:
        pause
        loop spin
        cli
        mov eax, {NOTHING_MORE}
        jmp emit
    put:
        push edx
        mov dx, {output}
        out dx, al
        shr eax, 8
        out dx, al
        shr eax, 8
        out dx, al
        shr eax, 8
        out dx, al
        pop edx
        ret
    interrupt:
        xchg eax, [esp]
        call put
        pop eax
        dec dword ptr [{COUNTER}]
        jnz back
        and dword ptr [esp + 8], 0xfffffdff
    back:
        iretd
    """


def kernel(output: int = DEBUG_CONSOLE) -> bytes:
    """The multiboot image that runs scripts and writes results to a port, byte by byte."""
    header = MultibootHeader().encode()
    assembler = Ks(KS_ARCH_X86, KS_MODE_32)
    code = bytes(assembler.asm(_source(output), LOAD + len(header))[0])
    # "interrupt" is the tail of the code: find it as the assembler placed it.
    tail = bytes(assembler.asm("xchg eax, [esp]")[0])
    common = LOAD + len(header) + code.rindex(tail)
    body = bytearray(header + code)
    assert LOAD + len(body) <= GDT
    body.extend(bytes(GDT - LOAD - len(body)))
    body.extend(struct.pack("<QQQ", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF))
    for vector in range(256):
        stub = STUBS + 16 * vector
        body.extend(struct.pack("<HHHH", stub & 0xFFFF, 0x8, 0x8E00, stub >> 16))
    for vector in range(256):
        stub = STUBS + 16 * vector
        jump = b"\x68" + struct.pack("<I", vector) + b"\xe9" + struct.pack("<i", common - (stub + 10))
        body.extend(jump.ljust(16, b"\x90"))
    return Elf(body=bytes(body), physical=LOAD, entry=LOAD + len(header)).encode()


def encode(steps: Sequence[Step]) -> bytes:
    """The module's bytes."""
    records = [*steps, Step(Op.END)]
    return b"".join(struct.pack("<IIII", s.op, s.address, s.value & 0xFFFF_FFFF, s.size) for s in records)


def run_on_qemu(steps: Sequence[Step], directory: Path) -> list[int]:
    """What the script's results are on QEMU's PC."""
    image, module, output = directory / "script.elf", directory / "script.bin", directory / "results"
    image.write_bytes(kernel())
    module.write_bytes(encode(steps))
    command = ["qemu-system-x86_64", "-machine", "pc,hpet=off,accel=tcg", "-m", "64", "-display", "none", "-nodefaults"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "pc-testdev", "-no-reboot"]
    command += ["-serial", "null", "-debugcon", f"file:{output}", "-kernel", str(image), "-initrd", str(module)]
    done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    assert done.returncode == 1, done.stderr.decode()
    # SeaBIOS writes text to the same console before the kernel starts; the marker is the script's first result.
    return _results(output.read_bytes())


def _results(data: bytes) -> list[int]:
    data = data[data.index(MARKER_BYTES) + 4 :]
    return [word for (word,) in struct.iter_unpack("<I", data[: len(data) // 4 * 4])]


def run_on_machine(steps: Sequence[Step], directory: Path) -> list[int]:
    """What the script's results are on the whole machine: engine, L0 and board. It must leave the serial port alone."""
    from lzero import Machine

    image, module, console = directory / "script.elf", directory / "script.bin", io.BytesIO()
    image.write_bytes(kernel(SERIAL))
    module.write_bytes(encode(steps))
    result = Machine(image, modules=[str(module)], console=console, memory="64M", timeout="host:60").run()
    assert result.debug_exit == 0, result.message
    return _results(console.getvalue())


MARKER_VALUE = 0x1EE7_C0DE
MARKER_BYTES = struct.pack("<I", MARKER_VALUE)
MARKER = (Step(Op.OUT, 0xE0, MARKER_VALUE, 4), Step(Op.IN, 0xE0, 0, 4))
"""Begins every script: the test device returns what was written to it."""


def run_on_board(steps: Sequence[Step], board: Board) -> list[int]:
    """What the script's results are on our board, without its first marker."""
    results: list[int] = []
    for step in steps:
        if step.op is Op.IN:
            results.append(board.bus.port_read(step.address, step.size))
        elif step.op is Op.OUT:
            board.bus.port_write(step.address, step.size, step.value)
        elif step.op is Op.READ:
            results.append(board.bus.mmio_read(step.address, 4))
        elif step.op is Op.WRITE:
            board.bus.mmio_write(step.address, 4, step.value)
        elif step.op is Op.TAKE:
            taken = 0
            while board.pc.pending_interrupt() and taken < TAKE_LIMIT:
                results.append(board.pc.acknowledge_interrupt())
                taken += 1
            results.append(NOTHING_MORE)
    return results[1:]
