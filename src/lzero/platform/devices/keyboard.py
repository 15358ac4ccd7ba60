"""The 8042 keyboard controller at ports 0x60 and 0x64: no keys, but commands, self-tests and the reset line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from lzero.platform.bus import Bus
from lzero.platform.exits import ExitKind, ExitRequest, RequestExit
from lzero.platform.registers import Access, RegisterRow

__all__ = ["KeyboardController", "REGISTERS"]

SHEET = "IBM PC/AT Technical Reference, Keyboard Controller"

# Offsets are ports.
REGISTERS = (
    RegisterRow("OUTPUT_BUFFER", 0x60, Access.READ, SHEET),
    RegisterRow("INPUT_BUFFER", 0x60, Access.WRITE, SHEET, "data for the last command, or for the keyboard"),
    RegisterRow("STATUS", 0x64, Access.READ, SHEET),
    RegisterRow("COMMAND", 0x64, Access.WRITE, SHEET),
)
DATA_PORT, COMMAND_PORT = 0x60, 0x64
OUTPUT_FULL, SYSTEM_FLAG, LAST_WAS_COMMAND, NOT_INHIBITED = 1, 4, 8, 0x10
MODE_KEYBOARD_INTERRUPT, MODE_SYSTEM = 1, 4
OUTPUT_PORT_RESET, OUTPUT_PORT_A20 = 1, 2
OUTPUT_PORT_AT_RESET = 0xCF
"""No reset, A20 on, clock and data lines of keyboard and mouse high."""


class Command(IntEnum):
    """Commands to the controller that have an answer or a consequence."""

    READ_MODE = 0x20
    WRITE_MODE = 0x60
    TEST_AUX = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD = 0xAB
    READ_INPUT_PORT = 0xC0
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    WRITE_OUTPUT_BUFFER = 0xD2
    PULSE = 0xF0


KEYBOARD_RESET, KEYBOARD_IDENTIFY = 0xFF, 0xF2
ACKNOWLEDGE, SELF_TEST_PASSED = 0xFA, 0xAA
ANSWERS = {Command.SELF_TEST: 0x55, Command.TEST_KEYBOARD: 0, Command.TEST_AUX: 1, Command.READ_INPUT_PORT: 0x80}
TAKES_DATA = (Command.WRITE_MODE, Command.WRITE_OUTPUT_PORT, Command.WRITE_OUTPUT_BUFFER)
QUEUE_SIZE = 16


class KeyboardController:
    """The controller with a keyboard that nobody types on.

    Parameters
    ----------
    irq:
        Drives IRQ 1.
    request_exit:
        Called when the guest pulses the reset line.
    """

    def __init__(self, irq: Callable[[bool], None], request_exit: RequestExit) -> None:
        self._irq = irq
        self._request_exit = request_exit
        self._output: deque[int] = deque(maxlen=QUEUE_SIZE)
        self._last = 0
        self._mode = MODE_SYSTEM
        self._output_port = OUTPUT_PORT_AT_RESET
        self._pending: int | None = None
        self._last_was_command = False

    def attach(self, bus: Bus) -> None:
        """Claim the ports."""
        bus.register_byte_port(DATA_PORT, self._read_data, self._write_data)
        bus.register_byte_port(COMMAND_PORT, self._read_status, self._write_command)

    def _read_status(self) -> int:
        status = NOT_INHIBITED | (self._mode & SYSTEM_FLAG)
        status |= OUTPUT_FULL if self._output else 0
        return status | (LAST_WAS_COMMAND if self._last_was_command else 0)

    def _read_data(self) -> int:
        # The register keeps what it held last.
        if self._output:
            self._last = self._output.popleft()
            self._update()
        return self._last

    def _answer(self, *values: int) -> None:
        self._output.extend(values)
        self._update()

    def _update(self) -> None:
        # Each byte gives its own edge.
        self._irq(False)
        if self._output and self._mode & MODE_KEYBOARD_INTERRUPT:
            self._irq(True)

    def _write_command(self, value: int) -> None:
        self._last_was_command = True
        self._pending = value if value in TAKES_DATA else None
        if value == Command.READ_MODE:
            self._answer(self._mode)
        elif value == Command.READ_OUTPUT_PORT:
            self._answer(self._output_port)
        elif value in ANSWERS:
            self._answer(ANSWERS[Command(value)])
        elif value >= Command.PULSE and not value & OUTPUT_PORT_RESET:
            self._reset()

    def _write_data(self, value: int) -> None:
        self._last_was_command = False
        command, self._pending = self._pending, None
        if command == Command.WRITE_MODE:
            self._mode = value
            self._update()
        elif command == Command.WRITE_OUTPUT_PORT:
            self._output_port = value
            if not value & OUTPUT_PORT_RESET:
                self._reset()
        elif command == Command.WRITE_OUTPUT_BUFFER:
            self._answer(value)
        elif value == KEYBOARD_RESET:
            self._answer(ACKNOWLEDGE, SELF_TEST_PASSED)
        elif value == KEYBOARD_IDENTIFY:
            self._answer(ACKNOWLEDGE, 0xAB, 0x83)
        else:
            self._answer(ACKNOWLEDGE)

    def _reset(self) -> None:
        self._request_exit(ExitRequest(ExitKind.RESET, 0, f"keyboard controller, port {COMMAND_PORT:#x}"))
