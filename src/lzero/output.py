"""Files that lzero writes: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from lzero.errors import UsageError

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader never sees half of it, and a failure leaves the old one.

    Raises :class:`UsageError` when the file cannot be written, naming it and the reason.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as failure:
        partial.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {failure.strerror}") from failure
