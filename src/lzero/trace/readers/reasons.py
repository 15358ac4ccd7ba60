"""Reason texts of the ``kvm_exit`` event to numbers: VMX and SVM names, their older spellings, and plain numbers."""

from __future__ import annotations

from functools import cache
from typing import Final

from lzero.trace.schema import Isa

__all__ = ["UNKNOWN_REASON", "reason_number", "trace_names"]

UNKNOWN_REASON: Final = 0xFFFF
"""Stands for a reason whose name nobody knows; no processor defines it."""


@cache
def trace_names() -> dict[str, tuple[Isa, int]]:
    """Every reason name that a KVM trace may print, with its numbering and number."""
    from lzero.sdm.exit_reasons import EXIT_REASONS
    from lzero.sdm.svm_exit_codes import SVM_EXIT_CODES

    names: dict[str, tuple[Isa, int]] = {}
    for code, svm in SVM_EXIT_CODES.items():
        names[svm.trace_name] = (Isa.SVM, code & 0xFFFF)
    for number, row in EXIT_REASONS.items():
        for name in (row.name, *row.aliases):
            names[name] = (Isa.VMX, number)
    return names


@cache
def reason_number(text: str) -> tuple[Isa, int] | None:
    """Numbering and number of a reason as a trace prints it, ``None`` when nobody knows the name.

    KVM's macro name (``EXIT_REASON_HLT``, as bcc prints) stands for the name. A number (``0x4b`` or ``75``) is
    taken as VMX's up to 255 and as SVM's above, where VMX defines none.
    """
    text = text.strip().removeprefix("EXIT_REASON_")
    known = trace_names().get(text)
    if known is not None:
        return known
    try:
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        return None
    if not 0 <= number <= 0xFFFFFFFFFFFFFFFF:
        return None
    return (Isa.VMX, number) if number <= 0xFF else (Isa.SVM, number & 0xFFFF)
