"""How a run ended, and what it ends the command with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lzero.trace.aggregates import Aggregates
from lzero.trace.names import reason_name
from lzero.trace.table import exit_table

__all__ = ["EXIT_STATUS", "Ended", "RunResult"]


class Ended(StrEnum):
    """Why a machine stopped running."""

    DEBUG_EXIT = "debug-exit"
    """The guest wrote to the debug-exit port."""
    POWER_OFF = "power-off"
    """The guest entered the ACPI S5 state."""
    RESET = "reset"
    """The guest asked for a reset, by the keyboard controller or a reset port. The machine does not start again."""
    TRIPLE_FAULT = "triple-fault"
    HALTED = "halted"
    """The guest halted and nothing can wake it: interrupts off, or no timer armed and no input to come."""
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    """Ctrl-C."""
    FAULT = "fault"
    """The guest reached a state from which the machine cannot go on; the message says which."""
    INTERNAL_ERROR = "internal-error"
    """A defect of lzero; please report it with the message."""


EXIT_STATUS: Mapping[Ended, int] = {
    Ended.POWER_OFF: 0,
    Ended.FAULT: 68,
    Ended.INTERNAL_ERROR: 70,
    Ended.TRIPLE_FAULT: 80,
    Ended.HALTED: 82,
    Ended.RESET: 84,
    Ended.TIMEOUT: 124,
    Ended.INTERRUPTED: 130,
}
"""Exit status for each ending but ``DEBUG_EXIT``, which gives ``(v << 1) | 1``: odd, where all of these are even."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """Summary of one run of a machine.

    Parameters
    ----------
    ended:
        Why it stopped.
    debug_exit:
        Value written to the debug-exit port (0 to 255), if that ended it.
    message:
        For an ending that is nobody's wish: what happened, guest RIP, mode, registers, last exits. Empty otherwise.
    aggregates:
        Running totals over the run's exits, as the recorder has them at its end.
    host_seconds:
        Wall time of the run, without loading the image.
    guest_seconds:
        Time that passed on the guest's clock.
    engine_version:
        Of the CPU engine, such as ``unicorn 2.1.4``.
    """

    ended: Ended
    debug_exit: int | None = None
    message: str = ""
    aggregates: Aggregates = field(default_factory=Aggregates)
    host_seconds: float = 0.0
    guest_seconds: float = 0.0
    engine_version: str = ""

    def __post_init__(self) -> None:
        if (self.ended is Ended.DEBUG_EXIT) != (self.debug_exit is not None):
            raise ValueError(f"ended {self.ended} with debug-exit value {self.debug_exit}")

    @property
    def exits(self) -> int:
        """Number of all exits, of every level."""
        return sum(self.aggregates.total(level).count for level in self.aggregates.levels())

    @property
    def exits_by_reason(self) -> dict[int, dict[str, int]]:
        """Per level (1 = L1, 2 = L2): name of the exit reason → number of exits, the most frequent first."""
        return {level: _named(self.aggregates.counts(level)) for level in self.aggregates.levels()}

    @property
    def exit_table(self) -> str:
        """The exits as text in the columns of ``perf kvm stat report``, a part for each level, then their causes."""
        return exit_table(self.aggregates)

    @property
    def exit_status(self) -> int:
        """Status for the command to end with; the low eight bits, which is all that a process can return.

        >>> RunResult(Ended.DEBUG_EXIT, debug_exit=3).exit_status
        7
        """
        if self.debug_exit is not None:
            return (self.debug_exit << 1 | 1) & 0xFF
        return EXIT_STATUS[self.ended]

    def summary(self) -> dict[str, Any]:
        """The run as plain data, as written by ``--json``; documented in docs/run.md."""
        return {
            "ended": str(self.ended),
            "exit_status": self.exit_status,
            "debug_exit": self.debug_exit,
            "message": self.message,
            "exits": self.exits,
            "exits_by_reason": {f"L{level}": reasons for level, reasons in self.exits_by_reason.items()},
            "host_seconds": self.host_seconds,
            "guest_seconds": self.guest_seconds,
            "engine_version": self.engine_version,
        }

    def to_json(self) -> str:
        """:meth:`summary` as JSON text with a final newline."""
        return json.dumps(self.summary(), indent=2) + "\n"


def _named(counts: Mapping[int, int]) -> dict[str, int]:
    return {reason_name(code): count for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}
