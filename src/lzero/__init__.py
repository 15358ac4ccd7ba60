"""An L0 hypervisor you can import.

The names below are the public API. :class:`Machine` and what belongs to it are loaded on first use, because the CPU
engine takes longer to load than most programs take to run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lzero.errors import (
    ConsistencyError,
    EngineError,
    GuestFault,
    ImageError,
    LzeroError,
    PlanError,
    ToolError,
    TraceFormatError,
    UsageError,
)

if TYPE_CHECKING:
    from lzero.machine import Machine
    from lzero.options import MachineOptions
    from lzero.result import Ended, RunResult

__version__ = "0.1.0"

__all__ = [
    "ConsistencyError",
    "Ended",
    "EngineError",
    "GuestFault",
    "ImageError",
    "LzeroError",
    "Machine",
    "MachineOptions",
    "PlanError",
    "RunResult",
    "ToolError",
    "TraceFormatError",
    "UsageError",
]

_LOADED_ON_USE = {
    "Ended": "lzero.result",
    "Machine": "lzero.machine",
    "MachineOptions": "lzero.options",
    "RunResult": "lzero.result",
}


def __getattr__(name: str) -> Any:
    module = _LOADED_ON_USE.get(name)
    if module is None:
        raise AttributeError(f"module 'lzero' has no attribute {name!r}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
