"""The MC146818 real-time clock and the CMOS memory behind ports 0x70 and 0x71, IRQ 8.

The time of day is a fixed epoch plus guest time, so that two runs of one image see the same date.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import IntEnum

from lzero.platform.bus import Bus
from lzero.platform.clock import NS_PER_SECOND, Clock, Timer, ticks_to_ns
from lzero.platform.memory import HIGH_RAM_BASE, GuestMemory
from lzero.platform.registers import Access, RegisterRow

__all__ = ["EPOCH", "REGISTERS", "Rtc"]

EPOCH = datetime(2026, 1, 1)
"""What the clock shows (UTC) when the machine starts."""

SHEET = "Motorola MC146818A"

# Offsets are indexes, chosen through port 0x70.
REGISTERS = (
    RegisterRow("SECONDS", 0x00, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations"),
    RegisterRow(
        "SECONDS_ALARM", 0x01, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations", "0xC0-0xFF: any"
    ),
    RegisterRow("MINUTES", 0x02, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations"),
    RegisterRow(
        "MINUTES_ALARM", 0x03, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations", "0xC0-0xFF: any"
    ),
    RegisterRow(
        "HOURS", 0x04, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations", "bit 7: PM in 12-hour mode"
    ),
    RegisterRow(
        "HOURS_ALARM", 0x05, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations", "0xC0-0xFF: any"
    ),
    RegisterRow("DAY_OF_WEEK", 0x06, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations", "Sunday is 1"),
    RegisterRow("DAY_OF_MONTH", 0x07, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations"),
    RegisterRow("MONTH", 0x08, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations"),
    RegisterRow("YEAR", 0x09, Access.READ_WRITE, f"{SHEET}, Time, Calendar and Alarm Locations"),
    RegisterRow("REGISTER_A", 0x0A, Access.READ_WRITE, f"{SHEET}, Register A", "UIP is read-only"),
    RegisterRow("REGISTER_B", 0x0B, Access.READ_WRITE, f"{SHEET}, Register B"),
    RegisterRow("REGISTER_C", 0x0C, Access.READ, f"{SHEET}, Register C", "reading clears it"),
    RegisterRow("REGISTER_D", 0x0D, Access.READ, f"{SHEET}, Register D", "VRT: the battery is good"),
    RegisterRow("CENTURY", 0x32, Access.READ_WRITE, "ACPI 6.5 5.2.9, FADT field CENTURY"),
)
INDEX_PORT, DATA_PORT = 0x70, 0x71
INDEX_MASK = 0x7F
CMOS_SIZE = 128


class Index(IntEnum):
    """CMOS indexes with a meaning."""

    SECONDS = 0
    SECONDS_ALARM = 1
    MINUTES = 2
    MINUTES_ALARM = 3
    HOURS = 4
    HOURS_ALARM = 5
    DAY_OF_WEEK = 6
    DAY_OF_MONTH = 7
    MONTH = 8
    YEAR = 9
    A = 0xA
    B = 0xB
    C = 0xC
    D = 0xD
    BASE_MEMORY = 0x15
    EXTENDED_MEMORY = 0x17
    EXTENDED_MEMORY_COPY = 0x30
    CENTURY = 0x32
    MEMORY_ABOVE_16M = 0x34
    MEMORY_ABOVE_4G = 0x5B


TIME_INDEXES = frozenset(
    {
        Index.SECONDS,
        Index.MINUTES,
        Index.HOURS,
        Index.DAY_OF_WEEK,
        Index.DAY_OF_MONTH,
        Index.MONTH,
        Index.YEAR,
        Index.CENTURY,
    }
)
WRITTEN_FIELDS = (Index.MONTH, Index.DAY_OF_MONTH, Index.HOURS, Index.MINUTES, Index.SECONDS)
ALARM_INDEXES = (Index.SECONDS_ALARM, Index.MINUTES_ALARM, Index.HOURS_ALARM)


class B(IntEnum):
    """Register B."""

    DAYLIGHT = 1
    HOURS_24 = 2
    BINARY = 4
    SQUARE_WAVE = 8
    UPDATE_ENDED = 0x10
    ALARM = 0x20
    PERIODIC = 0x40
    SET = 0x80


class C(IntEnum):
    """Register C: interrupt flags, at the same bits as their enables in register B."""

    UPDATE_ENDED = 0x10
    ALARM = 0x20
    PERIODIC = 0x40
    REQUEST = 0x80


A_DIVIDER_AND_1024_HZ = 0x26
A_UPDATE_IN_PROGRESS = 0x80
A_DIVIDER_RESET = 0x60
D_VALID = 0x80
UPDATE_CYCLE_NS = 244_000
"""UIP is set from this long before the clock advances."""
ALARM_DONT_CARE = 0xC0
OSCILLATOR_HZ = 32_768
KIB, BLOCK_64K = 1 << 10, 64 << 10


class Rtc:
    """The clock and its memory.

    Parameters
    ----------
    clock:
        Guest time.
    irq:
        Drives IRQ 8.
    epoch:
        Date and time (UTC) at guest time 0.
    """

    def __init__(self, clock: Clock, irq: Callable[[bool], None], epoch: datetime = EPOCH) -> None:
        self._clock = clock
        self._irq = irq
        self._cmos = bytearray(CMOS_SIZE)
        self._index = 0
        self._base = epoch
        self._base_ns = 0
        self._frozen: datetime | None = None
        self._c = 0
        self._periodic: Timer | None = None
        self._update: Timer | None = None
        self._cmos[Index.A] = A_DIVIDER_AND_1024_HZ
        self._cmos[Index.B] = B.HOURS_24
        self._cmos[Index.D] = D_VALID

    def attach(self, bus: Bus) -> None:
        """Claim ports 0x70 and 0x71."""
        bus.register_byte_port(INDEX_PORT, lambda: 0xFF, self._write_index)
        bus.register_byte_port(DATA_PORT, self._read_data, self._write_data)

    def describe_memory(self, memory: GuestMemory) -> None:
        """Fill in the sizes that firmware keeps in CMOS: base, extended, above 16 MiB, above 4 GiB."""
        low = memory.regions[0].size
        high = sum(region.size for region in memory.regions if region.gpa >= HIGH_RAM_BASE)
        extended = min((low - (1 << 20)) // KIB, 0xFFFF)
        above_16m = min(max(low - (16 << 20), 0) // BLOCK_64K, 0xFFFF)
        self._put(Index.BASE_MEMORY, 640, 2)
        self._put(Index.EXTENDED_MEMORY, extended, 2)
        self._put(Index.EXTENDED_MEMORY_COPY, extended, 2)
        self._put(Index.MEMORY_ABOVE_16M, above_16m, 2)
        self._put(Index.MEMORY_ABOVE_4G, min(high // BLOCK_64K, 0xFFFFFF), 3)

    def _put(self, index: int, value: int, size: int) -> None:
        self._cmos[index : index + size] = value.to_bytes(size, "little")

    # Time of day

    def _second_ns(self) -> int:
        """Nanoseconds since the current second of the clock began."""
        return (self._clock.now_ns() - self._base_ns) % NS_PER_SECOND

    def now(self) -> datetime:
        """Date and time the clock shows, to the second."""
        if self._frozen is not None:
            return self._frozen
        seconds = (self._clock.now_ns() - self._base_ns) // NS_PER_SECOND
        try:
            return self._base + timedelta(seconds=seconds)
        except OverflowError:  # a guest set the year 9999
            return self._base

    def _encode(self, value: int) -> int:
        return value if self._cmos[Index.B] & B.BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._cmos[Index.B] & B.BINARY else (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self._cmos[Index.B] & B.HOURS_24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._cmos[Index.B] & B.HOURS_24:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _read_time(self, index: int) -> int:
        now = self.now()
        if index == Index.HOURS:
            return self._encode_hour(now.hour)
        return self._encode(
            {
                Index.SECONDS: now.second,
                Index.MINUTES: now.minute,
                Index.DAY_OF_WEEK: now.isoweekday() % 7 + 1,
                Index.DAY_OF_MONTH: now.day,
                Index.MONTH: now.month,
                Index.YEAR: now.year % 100,
                Index.CENTURY: now.year // 100,
            }[Index(index)]
        )

    def _write_time(self, index: int, value: int) -> None:
        now = self.now()
        number = self._decode_hour(value) if index == Index.HOURS else self._decode(value)
        fields = [now.year, now.month, now.day, now.hour, now.minute, now.second]
        if index == Index.YEAR:
            fields[0] = now.year // 100 * 100 + number
        elif index == Index.CENTURY:
            fields[0] = number * 100 + now.year % 100
        elif index in WRITTEN_FIELDS:
            fields[WRITTEN_FIELDS.index(Index(index)) + 1] = number
        else:
            return  # the day of the week follows from the date
        year, month, day, hour, minute, second = fields
        try:
            changed = datetime(year, month, day, hour, minute, second)
        except ValueError:
            return  # a date that does not exist
        if self._frozen is not None:
            self._frozen = changed
        else:
            self._base, self._base_ns = changed, self._clock.now_ns() - self._second_ns()

    # Ports

    def _write_index(self, value: int) -> None:
        self._index = value & INDEX_MASK  # bit 7 masks NMI, which no device here raises

    def _read_data(self) -> int:
        index = self._index
        if index in TIME_INDEXES:
            return self._read_time(index)
        if index == Index.A:
            return self._cmos[Index.A] | (A_UPDATE_IN_PROGRESS if self._updating() else 0)
        if index == Index.C:
            value, self._c = self._c, 0
            self._irq(False)
            return value
        return self._cmos[index]

    def _updating(self) -> bool:
        return self._runs() and self._second_ns() >= NS_PER_SECOND - UPDATE_CYCLE_NS

    def _runs(self) -> bool:
        return self._frozen is None and self._cmos[Index.A] & A_DIVIDER_RESET != A_DIVIDER_RESET

    def _write_data(self, value: int) -> None:
        index = self._index
        if index in TIME_INDEXES:
            self._write_time(index, value)
        elif index == Index.A:
            self._cmos[Index.A] = value & 0x7F
            self._arm_periodic()
        elif index == Index.B:
            self._write_b(value)
        elif index not in (Index.C, Index.D):
            self._cmos[index] = value
            if index in ALARM_INDEXES:
                self._arm_update()

    def _write_b(self, value: int) -> None:
        if value & B.SET:
            value &= ~B.UPDATE_ENDED  # setting SET clears UIE
            if self._frozen is None:
                self._frozen = self.now()
        elif self._frozen is not None:
            # The first update comes half a second after the divider chain is released, one second after SET is cleared.
            self._base, self._base_ns, self._frozen = self._frozen, self._clock.now_ns(), None
        self._cmos[Index.B] = value
        self._raise(0)
        self._arm_periodic()
        self._arm_update()

    # Interrupts

    def _raise(self, flags: int) -> None:
        """Set flags of register C; the line follows the enabled ones."""
        self._c |= flags
        if self._c & self._cmos[Index.B] & (C.UPDATE_ENDED | C.ALARM | C.PERIODIC):
            self._c |= C.REQUEST
            self._irq(True)

    def _period_ticks(self) -> int | None:
        """Ticks of the 32.768 kHz oscillator between periodic interrupts."""
        rate = self._cmos[Index.A] & 0xF
        if not rate:
            return None
        # Rates 1 and 2 repeat 8 and 9 with this time base.
        return 1 << (rate + 7 if rate < 3 else rate) - 1

    def _arm_periodic(self) -> None:
        ticks = self._period_ticks() if self._cmos[Index.B] & B.PERIODIC else None
        if self._periodic is not None:
            self._periodic.cancel()
            self._periodic = None
        if ticks is not None:
            periods = self._clock.now_ns() * OSCILLATOR_HZ // (ticks * NS_PER_SECOND) + 1
            self._periodic = self._clock.call_at(ticks_to_ns(periods * ticks, OSCILLATOR_HZ), self._periodic_due)

    def _periodic_due(self) -> None:
        self._raise(C.PERIODIC)
        self._arm_periodic()

    def _arm_update(self) -> None:
        """A timer at each update of the second, as long as its interrupt or the alarm's is enabled."""
        if self._update is not None:
            self._update.cancel()
            self._update = None
        if self._frozen is None and self._cmos[Index.B] & (B.UPDATE_ENDED | B.ALARM):
            next_second = self._clock.now_ns() + NS_PER_SECOND - self._second_ns()
            self._update = self._clock.call_at(next_second, self._update_due)

    def _update_due(self) -> None:
        self._raise(C.UPDATE_ENDED | (C.ALARM if self._alarm_matches() else 0))
        self._arm_update()

    def _alarm_matches(self) -> bool:
        now = self.now()
        times = (self._encode(now.second), self._encode(now.minute), self._encode_hour(now.hour))
        alarms = (self._cmos[i] for i in ALARM_INDEXES)
        return all(alarm >= ALARM_DONT_CARE or alarm == time for alarm, time in zip(alarms, times, strict=True))
