"""The errors lzero raises on purpose.

::

    LzeroError                  base of all; ``exit_status`` is what the command line ends with
    ├── UsageError              contradictory or unknown options, names, files that do not exist
    ├── ImageError              a guest image that cannot be loaded
    ├── GuestFault              the guest did something the machine cannot continue from
    ├── ConsistencyError        a VM entry failed a named check; carries the check
    ├── TraceFormatError        a recording that cannot be read; carries where
    ├── PlanError               no dispatch or shadow plan can be made from this input
    ├── ToolError               a compiler or another outside program failed or is missing
    └── EngineError             the CPU engine is missing, of an unknown version, or misbehaves

Messages say what was wrong, where, and what to do about it. Statuses are even, so that none of them can be
taken for the odd status of a guest's debug exit; docs/exit-status.md lists them all.
"""

from __future__ import annotations

__all__ = [
    "ConsistencyError",
    "EngineError",
    "GuestFault",
    "ImageError",
    "LzeroError",
    "PlanError",
    "ToolError",
    "TraceFormatError",
    "UsageError",
]


class LzeroError(Exception):
    """Base of every error lzero raises on purpose."""

    exit_status: int = 70


class UsageError(LzeroError):
    """Options, names or files the user gave that make no sense together."""

    exit_status = 64


class ImageError(LzeroError):
    """A guest image that is missing, truncated, foreign or does not fit."""

    exit_status = 66


class GuestFault(LzeroError):
    """The guest reached a state from which no machine could continue."""

    exit_status = 68


class ConsistencyError(LzeroError):
    """A VM entry failed one of the named checks.

    Parameters
    ----------
    check:
        Identifier of the rule that failed, as in the check table.
    message:
        The values that made it fail.
    """

    exit_status = 68

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check


class TraceFormatError(LzeroError):
    """A recording that could not be read, with the place where reading failed."""

    exit_status = 76


class PlanError(LzeroError):
    """No plan can be made from this input."""

    exit_status = 76


class ToolError(LzeroError):
    """An outside program (compiler, disassembler) failed or is missing."""

    exit_status = 74


class EngineError(LzeroError):
    """The CPU engine is missing, of an unknown version, or misbehaves."""

    exit_status = 72
