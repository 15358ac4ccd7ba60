"""Recording exits while the machine runs.

The hot call, :meth:`Recorder.record`, packs one row into a preallocated buffer and returns; everything else
happens once per batch: totals are updated (:mod:`lzero.trace.aggregates`), and, when a file was asked for, the batch
becomes one Parquet part.

On disk, a recording under way is a directory ``FILE.parts`` of complete Parquet files; closing merges them into
``FILE`` with one rename. A killed recording therefore leaves readable parts, at most a batch or two seconds short, and
:func:`lzero.trace.store.open_trace` of ``FILE`` finds them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from lzero.errors import UsageError
from lzero.trace.aggregates import Aggregates, add_rows
from lzero.trace.schema import Isa, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    from lzero.trace.store import PartWriter

__all__ = ["Recorder"]

_ROW: Final = struct.Struct("<QqHBIQQBIIQiQQQB")
_ROW_SIZE: Final = _ROW.size
_FLUSH_NS: Final = 2_000_000_000  # a part at least this often in the recording's own time: what a kill can lose
_NEVER: Final = 1 << 63
_RAW_FIELDS: Final = (
    ("seq", "<u8"),
    ("parent", "<i8"),
    ("vcpu", "<u2"),
    ("level", "u1"),
    ("exit_reason", "<u4"),
    ("qualification", "<u8"),
    ("rip", "<u8"),
    ("instruction_length", "u1"),
    ("interruption_info", "<u4"),
    ("error_code", "<u4"),
    ("guest_physical_address", "<u8"),
    ("vmcs_field", "<i4"),
    ("tsc", "<u8"),
    ("host_ns", "<u8"),
    ("duration_ns", "<u8"),
    ("handled_by", "u1"),
)
_RAW_LIMITS: Final = (
    (0, 2**64 - 1),
    (-1, 2**63 - 1),
    (0, 2**16 - 1),
    (0, 255),
    (0, 2**32 - 1),
    (0, 2**64 - 1),
    (0, 2**64 - 1),
    (0, 255),
    (0, 2**32 - 1),
    (0, 2**32 - 1),
    (0, 2**64 - 1),
    (-1, 2**31 - 1),
    (0, 2**64 - 1),
    (0, 2**64 - 1),
    (0, 2**64 - 1),
    (0, 255),
)


class Recorder:
    """Collects exits into running totals and, if `path` is given, into a Parquet file.

    Parameters
    ----------
    path:
        Where the recording goes; ``None`` keeps the totals only.
    batch:
        Rows kept in memory before they are totalled and written; memory is about 250 bytes per row of one batch.

    Raises
    ------
    UsageError
        The directory of `path` does not exist or cannot be written.
    """

    __slots__ = (
        "_aggregates",
        "_batch",
        "_buffer",
        "_deadline",
        "_dtype",
        "_end",
        "_last_l2",
        "_offset",
        "_pack_into",
        "_period",
        "_raw",
        "_writer",
        "path",
    )

    def __init__(self, path: Path | None = None, batch: int = 65536) -> None:
        import numpy as np

        if batch < 1:
            raise UsageError(f"recorder: a batch needs at least one row, not {batch}")
        self.path = path
        self._batch = batch
        self._buffer = bytearray(_ROW_SIZE * batch)
        self._end = len(self._buffer)
        self._offset = 0
        self._pack_into = _ROW.pack_into
        self._raw = np.dtype(list(_RAW_FIELDS))
        self._dtype = numpy_dtype()
        self._aggregates = Aggregates()
        self._last_l2: dict[int, tuple[int, int]] = {}
        self._writer: PartWriter | None = None
        self._period = _FLUSH_NS if path is not None else _NEVER
        self._deadline = self._period
        if path is not None:
            from lzero.trace.store import PartWriter

            self._writer = PartWriter(path)

    def record(
        self,
        seq: int,
        parent: int,
        vcpu: int,
        level: int,
        reason: int,
        qualification: int,
        rip: int,
        instruction_length: int,
        interruption_info: int,
        error_code: int,
        gpa: int,
        vmcs_field: int,
        tsc: int,
        host_ns: int,
        duration_ns: int,
        handled_by: int,
    ) -> None:
        """Record one exit; the hot path, under a microsecond.

        `reason` may be the whole 32-bit exit reason: bits 15:0 become ``reason``, bit 31 ``failed_entry``. The other
        parameters are the columns of :data:`lzero.trace.schema.COLUMNS`. A value that does not fit its column is
        clamped to the column's range.
        """
        offset = self._offset
        try:
            self._pack_into(
                self._buffer,
                offset,
                seq,
                parent,
                vcpu,
                level,
                reason,
                qualification,
                rip,
                instruction_length,
                interruption_info,
                error_code,
                gpa,
                vmcs_field,
                tsc,
                host_ns,
                duration_ns,
                handled_by,
            )
        except struct.error:
            # A clock that jumps backwards gives a negative duration: one clamped row is worth more than a lost
            # recording.
            row = (
                seq,
                parent,
                vcpu,
                level,
                reason,
                qualification,
                rip,
                instruction_length,
                interruption_info,
                error_code,
                gpa,
                vmcs_field,
                tsc,
                host_ns,
                duration_ns,
                handled_by,
            )
            clamped = (min(max(value, low), high) for value, (low, high) in zip(row, _RAW_LIMITS, strict=True))
            self._pack_into(self._buffer, offset, *clamped)
        offset += _ROW_SIZE
        self._offset = offset
        if offset == self._end or host_ns >= self._deadline:
            self._deadline = host_ns + self._period
            self.flush()

    def flush(self) -> None:
        """Total the rows that wait in the buffer and write them as a part of their own."""
        import numpy as np

        count = self._offset // _ROW_SIZE
        self._offset = 0
        if not count:
            return
        raw = np.frombuffer(self._buffer, dtype=self._raw, count=count)
        rows = self._rows(raw)
        add_rows(self._aggregates, rows)
        if self._writer is not None:
            self._writer.write(rows)

    def _rows(self, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The schema's rows for a batch of packed ones."""
        import numpy as np

        rows = np.empty(len(raw), dtype=self._dtype)
        for name, _ in _RAW_FIELDS:
            if name != "exit_reason":
                rows[name] = raw[name]
        rows["reason"] = raw["exit_reason"] & 0xFFFF
        rows["failed_entry"] = raw["exit_reason"] >> 31
        rows["idt_vectoring"] = 0
        rows["isa"] = Isa.VMX
        rows["cpu"] = -1
        rows["thread"] = -1
        rows["parent_reason"] = self._parent_reasons(rows)
        return rows

    def _parent_reasons(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The reason of each row's parent, -1 without one.

        A parent lies in the same batch or is the latest L2 exit of its VCPU in an earlier batch, because L1 deals
        with one L2 exit at a time; so remembering one exit per VCPU suffices.
        """
        import numpy as np

        upper = rows[rows["level"] >= 2]
        known = {seq: reason for seq, reason in self._last_l2.values()}
        seqs = np.concatenate((np.fromiter(known.keys(), np.int64, len(known)), upper["seq"].astype(np.int64)))
        reasons = np.concatenate((np.fromiter(known.values(), np.int32, len(known)), upper["reason"].astype(np.int32)))
        for vcpu in np.unique(upper["vcpu"]).tolist():
            last = upper[upper["vcpu"] == vcpu][-1]
            self._last_l2[vcpu] = (int(last["seq"]), int(last["reason"]))
        if not len(seqs):
            return np.full(len(rows), -1, np.int32)
        order = np.argsort(seqs, kind="stable")
        seqs, reasons = seqs[order], reasons[order]
        place = np.minimum(np.searchsorted(seqs, rows["parent"]), len(seqs) - 1)
        found: np.ndarray[Any, Any] = np.where(seqs[place] == rows["parent"], reasons[place], -1).astype(np.int32)
        return found

    @property
    def aggregates(self) -> Aggregates:
        """Totals over everything recorded so far; rows still in the buffer are counted first."""
        self.flush()
        return self._aggregates

    def close(self) -> None:
        """Count what is left and put the finished file in place; calling it again does nothing."""
        self.flush()
        if self._writer is not None:
            self._writer.finish()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
