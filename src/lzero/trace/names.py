"""Names of reasons and fields as tables print them, from the fact tables of :mod:`lzero.sdm`."""

from __future__ import annotations

from functools import cache

__all__ = ["field_name", "field_number", "reason_name"]

_SVM = 0x10000
_UNKNOWN = 0xFFFF  # what readers store for a name nobody knows; SVM's -1 in 16 bits


@cache
def reason_name(code: int) -> str:
    """The trace name of a reason; bit 16 set means SVM. Numbers without a name are printed as numbers."""
    if code & _SVM:
        from lzero.sdm.svm_exit_codes import svm_exit_name

        short = code & 0xFFFF
        return svm_exit_name(-1 if short == _UNKNOWN else short)
    if code == _UNKNOWN:
        return "(unknown)"
    from lzero.sdm.exit_reasons import exit_reason_name

    return exit_reason_name(code)


@cache
def field_name(encoding: int) -> str:
    """The SDM name of a VMCS field encoding; an unknown one is printed in hex."""
    from lzero.sdm.vmcs_fields import VMCS_FIELDS

    row = VMCS_FIELDS.get(encoding)
    return row.name if row is not None else f"0x{encoding:04x}"


def field_number(name: str) -> int:
    """Encoding of the VMCS field of that SDM or KVM name, in any case.

    Raises
    ------
    KeyError
        No such field.
    """
    from lzero.sdm.vmcs_fields import Field

    return int(Field[name.upper()])
