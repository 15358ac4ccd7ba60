"""What the board asks the machine to do: end with a value, power off, reset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

__all__ = ["ExitKind", "ExitRequest", "RequestExit"]


class ExitKind(Enum):
    """Why the machine shall stop."""

    DEBUG_EXIT = "debug_exit"
    POWER_OFF = "poweroff"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class ExitRequest:
    """A device's wish to end the run.

    Parameters
    ----------
    kind:
        What was asked for.
    value:
        The value written to the debug-exit port; 0 for the other kinds.
    source:
        The register that was written, for the message to the user.
    """

    kind: ExitKind
    value: int
    source: str


RequestExit = Callable[[ExitRequest], None]
