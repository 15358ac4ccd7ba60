"""Random guests for the processor, run in a process of their own: ``python cpufuzz.py FIRST COUNT``.

Every case follows from its number. The number is written to standard output before the case runs, so that after a crash
or a hang the last line names the culprit; the last line of a good run is ``done``.
"""

from __future__ import annotations

import faulthandler
import random
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from harness import CODE, DATA, MODES, STACK, Bench, Guest  # noqa: E402

from lzero.errors import LzeroError  # noqa: E402
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmEntry, VmExit  # noqa: E402
from lzero.sdm.registers import Cr0, Cr4  # noqa: E402
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field, Kind  # noqa: E402

CASE_SECONDS = 60
EXITS = 12

# Instructions that lead somewhere, by their first bytes; operands stay random.
OPENINGS = [bytes.fromhex(text) for text in (
    "0f00 0f01 0f02 0f03 0f05 0f06 0f07 0f08 0f09 0f20 0f21 0f22 0f23 0f30 0f31 0f32 0f33 0f34 0f35 0fa2 0fa0 "
    "0fa1 0fa8 0fa9 0faa 0fae 0fb2 0fb4 0fb5 0fc7 0f01c1 0f01c2 0f01c3 0f01c4 0f01c8 0f01c9 0f01ca 0f01cb 0f01d0 "
    "0f01d1 0f01d4 0f01f8 0f01f9 0f78 0f79 660f3880 660f3881 660f3882 f30fc7 660fc7 f4 cc cd80 cd ce cf ca cb 9a "
    "ea ff 9c 9d fa fb 17 8e 8c 6c 6d 6e 6f f36c f36e f3a4 f3aa e4 e5 e6 e7 ec ed ee ef 0fb6 62 c4 c5 d7 f1 0f0b "
    "0fff 63 c8 c9 8f 48cf 41 40 67 66 f0 2e 64 65 0fae38 0f1803 0fc3 dbe3 9b d9 dd 0f58 0f10 0f38f0 0f3a 8dc0 "
    "f0ff 48 4c 49"
).split()]  # fmt: skip
INTERESTING = [0, 1, 2, 3, 7, 0xFF, 0x80, 0xFFFF, 0x8000, CODE, DATA, STACK, 0x3FF000, 0x400000, (1 << 31),
               (1 << 32) - 1, 1 << 32, 1 << 38, 1 << 39, 1 << 47, (1 << 47) - 1, 0xFFFF_8000_0000_0000, (1 << 64) - 1,
               1 << 63]  # fmt: skip
WORDS = {
    Field.PIN_BASED_VM_EXECUTION_CONTROLS: PinBased,
    Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: ProcBased,
    Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: ProcBased2,
    Field.VM_EXIT_CONTROLS: VmExit,
    Field.VM_ENTRY_CONTROLS: VmEntry,
}
_GUEST_FIELDS = [Field(e) for e, row in VMCS_FIELDS.items() if row.kind is Kind.GUEST_STATE]
_CONTROL_FIELDS = [Field(e) for e, row in VMCS_FIELDS.items() if row.kind is Kind.CONTROL]


def _code(r: random.Random) -> bytes:
    parts = []
    for _ in range(r.randrange(1, 8)):
        if r.random() < 0.7:
            parts.append(r.choice(OPENINGS))
        parts.append(r.randbytes(r.randrange(1, 6)))
    return b"".join(parts)


def _value(r: random.Random) -> int:
    kind = r.random()
    if kind < 0.5:
        return r.choice(INTERESTING)
    return r.getrandbits(64) if kind < 0.7 else r.getrandbits(16) if kind < 0.85 else 1 << r.randrange(64)


def _allowed_controls(r: random.Random, guest: Guest) -> None:
    caps = guest.processor.capabilities
    ranges = {
        Field.PIN_BASED_VM_EXECUTION_CONTROLS: caps.pin, Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: caps.proc,
        Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: caps.proc2, Field.VM_EXIT_CONTROLS: caps.exit,
    }  # fmt: skip
    for field, allowed in ranges.items():
        for bit in range(32):
            if r.random() < 0.15 and allowed.allowed1 >> bit & 1 and not allowed.allowed0 >> bit & 1:
                guest[field] = guest[field] ^ 1 << bit


def prepare(bench: Bench, number: int) -> Guest:
    """The guest of a case."""
    r = random.Random(number)
    guest = bench.guest(r.choice(MODES), _code(r))
    guest.on(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
    guest[Field.VMX_PREEMPTION_TIMER_VALUE] = r.randrange(60)
    for register in range(16):
        guest.gpr[register] = _value(r)
    guest[Field.GUEST_RSP] = STACK if r.random() < 0.7 else _value(r)
    if r.random() < 0.5:
        _allowed_controls(r, guest)
        guest.on(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
    if r.random() < 0.4:
        guest[Field.EXCEPTION_BITMAP] = r.getrandbits(32)
    if r.random() < 0.3:
        guest[Field.GUEST_RFLAGS] = guest[Field.GUEST_RFLAGS] ^ (r.getrandbits(22) & 0x3F7FD5)
    if r.random() < 0.3:
        guest[Field.GUEST_CR0] = guest[Field.GUEST_CR0] ^ int(r.choice(list(Cr0)))
        guest[Field.GUEST_CR4] = guest[Field.GUEST_CR4] ^ int(r.choice(list(Cr4)))
    if r.random() < 0.3:
        guest[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = 1 << 31 | r.getrandbits(12)
        guest[Field.VM_ENTRY_EXCEPTION_ERROR_CODE] = r.getrandbits(15)
        guest[Field.VM_ENTRY_INSTRUCTION_LENGTH] = r.randrange(16)
    for fields, share in ((_GUEST_FIELDS, 0.4), (_CONTROL_FIELDS, 0.2)):
        while r.random() < share:
            guest[r.choice(fields)] = _value(r)
    if r.random() < 0.3:
        for _ in range(r.randrange(20)):
            where = r.choice([0x1000, 0x2000, 0x3000, 0x10000, 0x11000, 0x12000, 0x13000, 0x18000, 0x19000, 0x1A000])
            guest.write(where + r.randrange(0x400), r.randbytes(r.randrange(1, 9)))
    if r.random() < 0.3:
        guest.on(ProcBased2.ENABLE_EPT)
        for _ in range(r.randrange(6)):
            guest.write_u64(
                guest.ept_slot(r.randrange(0x20) << 12),
                r.getrandbits(64) if r.random() < 0.3 else r.randrange(0x40) << 12 | r.getrandbits(12),
            )
    guest.processor.invept()
    return guest


def run(guest: Guest, number: int) -> int:
    """Enter until something ends it; the number of exits."""
    r = random.Random(~number)
    for count in range(EXITS):
        exit = guest.enter()
        if exit.reason >> 31:
            return count
        if exit.length:
            guest.skip()
        else:
            guest[Field.GUEST_RIP] = CODE + r.randrange(guest.size + 1)
        guest[Field.VMX_PREEMPTION_TIMER_VALUE] = r.randrange(60)
        guest[Field.GUEST_ACTIVITY_STATE] = 0
    return EXITS


def main() -> None:
    """Run the cases that the command line names."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    bench = Bench()
    errors = exits = 0
    for number in range(first, first + count):
        print(number, flush=True)
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        try:
            exits += run(prepare(bench, number), number)
        except LzeroError:
            errors += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{exits} exits, {errors} entries refused or ended with an error of lzero's")
    print("done")


if __name__ == "__main__":
    faulthandler.enable()
    main()
