"""How the platform's devices describe their registers: one row per register.

Every device file holds a ``REGISTERS`` table of these rows. The rows are facts (name, place, access, section of the
data sheet); ``docs/platform.md`` and the tests read them, the device's handlers carry the behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Access", "RegisterRow"]


class Access(Enum):
    """What software may do with a register."""

    READ = "R"
    WRITE = "W"
    READ_WRITE = "RW"


@dataclass(frozen=True, slots=True)
class RegisterRow:
    """One device register.

    Parameters
    ----------
    name:
        The data sheet's name.
    offset:
        Port, index or byte offset, as the table's own comment says.
    access:
        Whether software reads it, writes it, or both.
    section:
        Where the data sheet specifies it.
    note:
        A condition or a deviation worth knowing.
    """

    name: str
    offset: int
    access: Access
    section: str
    note: str = ""
