"""The 8254 interval timer: channel 0 drives IRQ 0, channel 2 is read and gated through port 0x61.

Counters are not counted: each knows when its count began and computes its value and its output from guest time.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from lzero.platform.bus import Bus
from lzero.platform.clock import NS_PER_SECOND, Clock, Timer, ticks_to_ns
from lzero.platform.registers import Access, RegisterRow

__all__ = ["PIT_HZ", "Pit8254", "PitChannel", "REGISTERS"]

PIT_HZ = 1_193_182
SHEET = "Intel 8254"

# Offsets are ports.
REGISTERS = (
    RegisterRow("COUNTER_0", 0x40, Access.READ_WRITE, f"{SHEET}, Programming the 8254", "IRQ 0"),
    RegisterRow("COUNTER_1", 0x41, Access.READ_WRITE, f"{SHEET}, Programming the 8254", "refresh; no consequence"),
    RegisterRow(
        "COUNTER_2", 0x42, Access.READ_WRITE, f"{SHEET}, Programming the 8254", "speaker; gate and output at port 0x61"
    ),
    RegisterRow("CONTROL", 0x43, Access.WRITE, f"{SHEET}, Control Word, Read-Back Command"),
)
FIRST_PORT, CONTROL_PORT = 0x40, 0x43


class Mode(IntEnum):
    """Counter modes."""

    INTERRUPT_ON_TERMINAL_COUNT = 0
    ONE_SHOT = 1
    RATE_GENERATOR = 2
    SQUARE_WAVE = 3
    SOFTWARE_STROBE = 4
    HARDWARE_STROBE = 5


PERIODIC = (Mode.RATE_GENERATOR, Mode.SQUARE_WAVE)
TRIGGERED = (Mode.ONE_SHOT, Mode.HARDWARE_STROBE)
ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH = 0, 1, 2, 3
READ_BACK = 3
STATUS_OUTPUT, STATUS_NULL_COUNT = 0x80, 0x40


def _from_bcd(value: int) -> int:
    return sum((value >> 4 * i & 0xF) * 10**i for i in range(4))


def _to_bcd(value: int) -> int:
    return sum((value // 10**i % 10) << 4 * i for i in range(4))


class PitChannel:
    """One counter of the 8254.

    Parameters
    ----------
    clock:
        Guest time.
    on_edge:
        Called at each rising edge of the output, with True if the edge is told late (see :meth:`watch`); None if the
        output leads nowhere.
    gate:
        Whether the gate input is high at first.
    """

    def __init__(self, clock: Clock, on_edge: Callable[[bool], None] | None = None, gate: bool = True) -> None:
        self._clock = clock
        self._on_edge = on_edge
        self._timer: Timer | None = None
        self._edge_ns: int | None = None
        self._watched = True
        self.gate = gate
        self.mode = Mode.INTERRUPT_ON_TERMINAL_COUNT
        self._bcd = False
        self._access = ACCESS_BOTH
        self._reload = 0x10000
        self._start_ns: int | None = None
        self._paused_ticks: int | None = None
        self._next_reload: tuple[int, int] | None = None
        self._write_low: int | None = None
        self._null_count = True
        self._latched_count: int | None = None
        self._latched_status: int | None = None
        self._read_high = False

    # Counting

    def _settle(self) -> None:
        """A count written during a period takes effect at the period's end (modes 2 and 3)."""
        if self._next_reload is not None and self._clock.now_ns() >= self._next_reload[0]:
            self._start_ns, self._reload = self._next_reload
            self._next_reload = None
            self._null_count = False

    def _elapsed(self) -> int:
        """Ticks since the count was loaded."""
        if self._paused_ticks is not None:
            return self._paused_ticks
        if self._start_ns is None:
            return 0
        return (self._clock.now_ns() - self._start_ns) * PIT_HZ // NS_PER_SECOND

    @property
    def _modulus(self) -> int:
        return 10000 if self._bcd else 0x10000

    def count(self) -> int:
        """The counting element's value, 0 to 0xFFFF (or BCD)."""
        self._settle()
        elapsed, reload = self._elapsed(), self._reload
        if self.mode is Mode.RATE_GENERATOR:
            value = reload - elapsed % reload
        elif self.mode is Mode.SQUARE_WAVE:
            even = max(reload & ~1, 2)
            value = even - 2 * elapsed % even
        else:
            value = reload - elapsed
        value %= self._modulus
        return _to_bcd(value) if self._bcd else value

    def output(self) -> bool:
        """Level of the OUT pin."""
        self._settle()
        if self.mode is Mode.INTERRUPT_ON_TERMINAL_COUNT:
            return self._start_ns is not None and self._elapsed() >= self._reload
        if self._start_ns is None:
            return True
        elapsed = self._elapsed()
        if self.mode is Mode.ONE_SHOT:
            return elapsed >= self._reload
        if self.mode in PERIODIC and not self.gate:
            return True
        if self.mode is Mode.RATE_GENERATOR:
            return elapsed % self._reload != self._reload - 1
        if self.mode is Mode.SQUARE_WAVE:
            return elapsed % self._reload < (self._reload + 1) // 2
        return elapsed != self._reload

    # The output's edges

    def watch(self, watched: bool) -> None:
        """Whether each edge must be told at its time. Where every receiver is masked, it need not, and a halted guest's
        time can pass without a stop for each: :meth:`catch_up` tells then what was missed.
        """
        if watched != self._watched:
            self.catch_up()
            self._watched = watched
            self._arm()

    def catch_up(self) -> None:
        """Tell the edge that came since nobody watched; several are one, as in an interrupt controller's latch."""
        if not self._watched and self._edge_ns is not None and self._clock.now_ns() >= self._edge_ns:
            self._edge(late=True)

    def _arm(self) -> None:
        """Wait for the next rising edge of the output."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._edge_ns = self._next_edge_ns() if self._on_edge is not None else None
        if self._edge_ns is not None and self._watched:
            self._timer = self._clock.call_at(self._edge_ns, self._edge)

    def _next_edge_ns(self) -> int | None:
        start = self._start_ns
        if start is None or self._paused_ticks is not None:
            return None
        if self.mode in PERIODIC:
            if self._next_reload is not None:
                return self._next_reload[0]
            periods = self._elapsed() // self._reload + 1
            return start + ticks_to_ns(periods * self._reload, PIT_HZ)
        # Strobes go low for one tick at the terminal count and then rise.
        strobe = 1 if self.mode in (Mode.SOFTWARE_STROBE, Mode.HARDWARE_STROBE) else 0
        edge = start + ticks_to_ns(self._reload + strobe, PIT_HZ)
        return edge if edge > self._clock.now_ns() else None

    def _edge(self, late: bool = False) -> None:
        self._timer = self._edge_ns = None
        self._settle()
        if self.mode in PERIODIC:
            self._arm()
        if self._on_edge is not None:
            self._on_edge(late)

    # Gate

    def set_gate(self, level: bool) -> None:
        """Drive the gate input: low stops the count, a rising edge starts the triggered modes and restarts the
        periodic ones.
        """
        if level == self.gate:
            return
        self.catch_up()
        now = self._clock.now_ns()
        self.gate = level
        if self._start_ns is not None and self.mode not in TRIGGERED:
            if not level:
                self._paused_ticks = self._elapsed()
            else:
                paused, self._paused_ticks = self._paused_ticks, None
                restart = self.mode in PERIODIC or paused is None
                self._start_ns = now if restart or paused is None else now - ticks_to_ns(paused, PIT_HZ)
        elif level and self.mode in TRIGGERED and not self._null_count:
            self._start_ns = now
        self._arm()

    # Registers

    def configure(self, access: int, mode: int, bcd: bool) -> None:
        """A control word for this counter: it stops until a count is written."""
        self.catch_up()
        self._access = access
        # Mode bit 2 is a don't-care for modes 2 and 3.
        self.mode = Mode(mode & 3 if mode & 2 else mode)
        self._bcd = bcd
        self._start_ns = self._paused_ticks = self._next_reload = None
        self._write_low = self._latched_count = self._latched_status = None
        self._read_high = False
        self._null_count = True
        self._arm()

    def latch_count(self) -> None:
        """Counter latch command; a second one before the count was read is ignored."""
        if self._latched_count is None:
            self._latched_count = self.count()

    def latch_status(self) -> None:
        """Status part of the read-back command."""
        if self._latched_status is None:
            self._settle()
            status = self._access << 4 | self.mode << 1 | self._bcd
            status |= STATUS_OUTPUT if self.output() else 0
            self._latched_status = status | (STATUS_NULL_COUNT if self._null_count else 0)

    def read(self) -> int:
        """The counter's port: latched status, then latched or live count, low and high byte as the access mode says."""
        if self._latched_status is not None:
            status, self._latched_status = self._latched_status, None
            return status
        value = self._latched_count if self._latched_count is not None else self.count()
        if self._access == ACCESS_BOTH:
            self._read_high = not self._read_high
            if self._read_high:
                return value & 0xFF
            self._latched_count = None
            return value >> 8
        self._latched_count = None
        return value >> 8 if self._access == ACCESS_HIGH else value & 0xFF

    def write(self, value: int) -> None:
        """The counter's port: a new count, in one or two bytes."""
        self.catch_up()
        if self._access == ACCESS_LOW:
            self._load(value)
        elif self._access == ACCESS_HIGH:
            self._load(value << 8)
        elif self._write_low is None:
            self._write_low = value
            if self.mode is Mode.INTERRUPT_ON_TERMINAL_COUNT:
                # The first byte of a new count stops the old one.
                self._start_ns = self._paused_ticks = None
                self._arm()
        else:
            low, self._write_low = self._write_low, None
            self._load(value << 8 | low)

    def _load(self, raw: int) -> None:
        count = _from_bcd(raw) if self._bcd else raw
        reload = count % self._modulus or self._modulus
        self._null_count = False
        if self.mode in PERIODIC:
            reload = max(reload, 2)  # the data sheet forbids 1
            self._settle()
            boundary = self._next_edge_ns()
            if boundary is not None:
                self._next_reload = (boundary, reload)
                self._null_count = True
                self._arm()
                return
        self._reload = reload
        if self.mode in TRIGGERED:
            return  # the gate starts it
        self._start_ns = self._clock.now_ns()
        self._paused_ticks = None if self.gate else 0
        self._arm()


class Pit8254:
    """The three counters and their control register.

    Parameters
    ----------
    clock:
        Guest time.
    irq0:
        Called at each rising edge of counter 0's output, as :class:`PitChannel` says.
    """

    def __init__(self, clock: Clock, irq0: Callable[[bool], None]) -> None:
        self.channels = (PitChannel(clock, irq0), PitChannel(clock), PitChannel(clock, gate=False))
        # As firmware leaves it: 18.2 Hz square wave.
        self.channels[0].configure(ACCESS_BOTH, Mode.SQUARE_WAVE, bcd=False)
        for _ in range(2):
            self.channels[0].write(0)

    def attach(self, bus: Bus) -> None:
        """Claim ports 0x40–0x43."""
        for i, channel in enumerate(self.channels):
            bus.register_byte_port(FIRST_PORT + i, channel.read, channel.write)
        bus.register_byte_port(CONTROL_PORT, None, self._control)

    def _control(self, value: int) -> None:
        select = value >> 6
        if select == READ_BACK:
            self._read_back(value)
        elif value >> 4 & 3 == ACCESS_LATCH:
            self.channels[select].latch_count()
        else:
            self.channels[select].configure(value >> 4 & 3, value >> 1 & 7, bool(value & 1))

    def _read_back(self, value: int) -> None:
        for i, channel in enumerate(self.channels):
            if value & 2 << i:
                if not value & 0x20:
                    channel.latch_count()
                if not value & 0x10:
                    channel.latch_status()
