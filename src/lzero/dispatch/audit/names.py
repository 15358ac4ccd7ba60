"""Names of exit reasons by vendor, as tables print them."""

from __future__ import annotations

from lzero.sdm.exit_reasons import exit_reason_name
from lzero.sdm.svm_exit_codes import svm_exit_name

__all__ = ["reason_name"]


def reason_name(vendor: str, reason: int) -> str:
    """KVM's trace name of a reason; the number as text when it is unknown."""
    return svm_exit_name(reason) if vendor == "svm" else exit_reason_name(reason)
