"""Random scripts of register accesses, one generator per device, that any two machines must answer alike.

They stay where machines follow the data sheets. QEMU differs knowingly in: the gate input of the 8254's counters,
special mask mode's non-specific EOI, repeated edges at the I/O APIC, reserved bits of the local vector table,
modem-status deltas in loopback.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from boardscript import Op, Step

APIC, IOAPIC, COM1 = 0xFEE00000, 0xFEC00000, 0x3F8
LINES = (3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15)
TAKE = Step(Op.TAKE)


def out(port: int, *values: int) -> list[Step]:
    return [Step(Op.OUT, port, value, 1) for value in values]


def inp(*ports: int) -> list[Step]:
    return [Step(Op.IN, port, 0, 1) for port in ports]


def write(address: int, value: int) -> list[Step]:
    return [Step(Op.WRITE, address, value)]


def read(*addresses: int) -> list[Step]:
    return [Step(Op.READ, address) for address in addresses]


def irq(line: int, level: int) -> list[Step]:
    return out(0x2000 + line, level)


def ioapic(index: int, value: int) -> list[Step]:
    return write(IOAPIC, index) + write(IOAPIC + 0x10, value)


def ioapic_read(index: int) -> list[Step]:
    return write(IOAPIC, index) + read(IOAPIC + 0x10)


# The firmwares leave different ELCRs and a running timer behind: all edges, and counter 0 in a mode that waits for
# its gate.
QUIET = out(0x4D0, 0) + out(0x4D1, 0) + out(0x21, 0xFF) + out(0xA1, 0xFF) + out(0x43, 0x3A) + out(0x40, 0xFF, 0xFF)
PIC_SETUP = (
    out(0x20, 0x11) + out(0x21, 0x20, 4, 1, 0) + out(0xA0, 0x11) + out(0xA1, 0x28, 2, 1, 0)
)  # vectors 0x20 and 0x28, nothing masked


def pic_script(chance: random.Random) -> list[Step]:
    """Lines, masks, every OCW2, IRR and ISR, poll, ELCR."""

    def step() -> list[Step]:
        command, data = chance.choice(((0x20, 0x21), (0xA0, 0xA1)))
        level = chance.randrange(8)
        return chance.choice(
            (
                lambda: irq(chance.choice(LINES), chance.randrange(2)),
                lambda: irq(chance.choice(LINES), chance.randrange(2)),
                lambda: [TAKE],
                lambda: out(command, chance.choice((0x20, 0x60 | level, 0xA0, 0xC0 | level, 0xE0 | level, 0x80, 0))),
                lambda: out(command, 0x20),
                lambda: out(data, chance.getrandbits(8) & ~4),
                lambda: out(command, chance.choice((0x0A, 0x0B))) + inp(command, data),
                lambda: out(command, 0x0C) + inp(command),
                lambda: out(chance.choice((0x4D0, 0x4D1)), chance.getrandbits(8)) + inp(0x4D0, 0x4D1),
            )
        )()

    return PIC_SETUP + [s for _ in range(120) for s in step()]


def apic_script(chance: random.Random) -> list[Step]:
    """Edges and levels through the I/O APIC, IPIs, priorities, EOI, the three vectors."""
    level, trigger = dict.fromkeys(LINES, 0), dict.fromkeys(LINES, 0)
    script = write(APIC + 0xF0, 0x1FF) + write(APIC + 0x80, 0) + write(APIC + 0x350, 0x10700)
    for line in LINES:
        script += ioapic(0x11 + 2 * line, 0) + ioapic(0x10 + 2 * line, 0x30 + 9 * line)

    def toggle(line: int) -> list[Step]:
        level[line] ^= 1
        return irq(line, level[line])

    def redirect(line: int) -> list[Step]:
        if not level[line]:
            trigger[line] = chance.choice((0, 1 << 15))
        vector = chance.choice((0x30, 0x31, 0x52, 0x7F, 0x99, 0xEE))
        entry = trigger[line] | chance.choice((0, 0, 1 << 16)) | chance.choice((0, 1 << 8)) | vector
        return ioapic(0x10 + 2 * line, entry) + ioapic_read(0x10 + 2 * line)

    def ipi() -> list[Step]:
        destination = chance.choice((0, 0, 0xFF, 1)) << 24
        shorthand = chance.choice((0, 1, 2, 3)) << 18
        return write(APIC + 0x310, destination) + write(APIC + 0x300, shorthand | chance.choice((0x33, 0x44, 0x99)))

    def step() -> list[Step]:
        line, word = chance.choice(LINES), 16 * chance.randrange(8)
        return chance.choice(
            (
                lambda: toggle(line),
                lambda: toggle(line),
                lambda: [TAKE],
                lambda: write(APIC + 0xB0, 0),
                lambda: redirect(line),
                lambda: ioapic_read(0x10 + 2 * line),
                lambda: write(APIC + 0x80, chance.choice((0, 0x20, 0x5F, 0x90))) + read(APIC + 0x80, APIC + 0xA0),
                lambda: read(APIC + 0x100 + word, APIC + 0x180 + word, APIC + 0x200 + word, APIC + 0xA0),
                ipi,
            )
        )()

    return script + [s for _ in range(120) for s in step()]


def serial_script(chance: random.Random) -> list[Step]:
    """Identification, interrupts, loopback data. No receive interrupt: its time-out follows the host's time on QEMU."""

    def step() -> list[Step]:
        register = chance.choice((0, 1, 2, 2, 3, 4, 5, 5, 7))
        return chance.choice(
            (
                lambda: out(COM1 + 1, chance.choice((0, 2, 4, 6))),
                lambda: out(COM1, chance.getrandbits(8)),
                lambda: out(COM1 + 4, chance.choice((0, 8, 0x18, 0x1B, 3))),
                lambda: out(COM1 + 2, chance.choice((0, 1, 7, 3, 5))),
                lambda: out(COM1 + 7, chance.getrandbits(8)),
                lambda: [TAKE, *out(0x20, 0x20)],
                lambda: inp(COM1 + register),
                lambda: inp(COM1 + register),
            )
        )()

    start = PIC_SETUP + out(COM1 + 3, 3) + out(COM1 + 1, 0) + out(COM1 + 4, 0) + out(COM1 + 2, 0) + inp(COM1, COM1 + 2)
    return start + [s for _ in range(120) for s in step()]


def rtc_script(chance: random.Random) -> list[Step]:
    """Every date format, written and read back while the clock is stopped."""

    def cmos(index: int, value: int) -> list[Step]:
        return out(0x70, index) + out(0x71, value) + inp(0x71)

    def date(binary: bool, hours_24: bool) -> list[Step]:
        def encode(value: int) -> int:
            return value if binary else value // 10 << 4 | value % 10

        hour = chance.randrange(24)
        hour_field = encode(hour) if hours_24 else encode((hour + 11) % 12 + 1) | (0x80 if hour > 11 else 0)
        fields = ((0, chance.randrange(60)), (2, chance.randrange(60)), (7, chance.randint(1, 28)))
        fields += ((8, chance.randint(1, 12)), (9, chance.randrange(100)))
        script = cmos(0xB, 0x80 | binary << 2 | hours_24 << 1) + cmos(4, hour_field)
        return script + [s for index, value in fields for s in cmos(index, encode(value))]

    return [s for _ in range(30) for s in date(bool(chance.randrange(2)), bool(chance.randrange(2)))]


SCRIPTS: dict[str, Callable[[random.Random], list[Step]]] = {
    "8259A": pic_script,
    "APIC": apic_script,
    "serial": serial_script,
    "RTC": rtc_script,
}
