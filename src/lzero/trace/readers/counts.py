"""Recordings that hold numbers of exits only: bpftrace maps, ``perf kvm stat report``, bcc ``kvmexit``, ``kvm_stat``,
CSV.

They become :class:`~lzero.trace.aggregates.Aggregates`, so the tables and the comparison work; there are no rows,
no order and no causes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from lzero.trace.aggregates import Aggregates, Totals
from lzero.trace.readers.detect import Kind
from lzero.trace.readers.events import Diagnosis
from lzero.trace.readers.reasons import reason_number
from lzero.trace.schema import Isa

__all__ = ["has_count_column", "read_counts"]

_LIMIT: Final = 64 << 20  # such a table is a few kilobytes; more than this is something else
_COUNT: Final = r"\d{1,18}"  # fits 64 bits; more digits are no count
_DECIMAL: Final = r"\d{1,15}(?:\.\d{1,9})?"
_BPFTRACE: Final = re.compile(rf"^@\w*\[([^\]]+)\]:\s+({_COUNT})\s*$")
_PERF_KVM: Final = re.compile(
    rf"^\s*(?P<name>\S.*?)\s+(?P<count>{_COUNT})\s+{_DECIMAL}%\s+{_DECIMAL}%"
    rf"\s+(?P<min>{_DECIMAL})us\s+(?P<max>{_DECIMAL})us\s+(?P<mean>{_DECIMAL})us"
    rf"\s*(?:\(\s*\+-\s*(?P<error>{_DECIMAL}|-?nan)%\s*\))?\s*$"
)
_BCC: Final = re.compile(rf"^\s*(?:\d+\s+)*?(?P<name>[A-Za-z_]\w*|0x[0-9a-fA-F]{{1,16}})\s+(?P<count>{_COUNT})\s*$")
_KVM_STAT: Final = re.compile(rf"^\s*kvm_exit\((?P<name>[^)]+)\)\s+(?P<count>{_COUNT})\b")
_REASON_COLUMNS: Final = ("reason", "exit_reason", "exit", "vm-exit", "name", "event")
_COUNT_COLUMNS: Final = ("count", "samples", "exits", "total", "number")


def read_counts(kind: Kind, stream: BinaryIO, diagnosis: Diagnosis) -> Aggregates:
    """Totals of a counts-only recording. Lines that are no counts are located in `diagnosis`."""
    raw = b""
    try:
        while len(raw) < _LIMIT and (piece := stream.read(1 << 20)):
            raw += piece
    except OSError as error:
        diagnosis.problem("unreadable input", f"offset {len(raw):#x}", f"cannot read on: {error}")
    text = raw.decode("utf-8-sig", "replace")
    aggregates = Aggregates()
    if kind is Kind.CSV:
        found: Iterable[tuple[str, str, Totals]] = _csv(text, diagnosis)
    else:
        parse = {
            Kind.BPFTRACE: _bpftrace,
            Kind.PERF_KVM_STAT: _perf_kvm_stat,
            Kind.BCC: _bcc,
            Kind.KVM_STAT: _kvm_stat,
        }[kind]
        found = _lines(text, parse, diagnosis)
    for where, name, totals in found:
        number = reason_number(name)
        if number is None:
            diagnosis.problem("unknown reason", where, f"unknown exit reason {name!r}, {totals.count} exits dropped")
            continue
        isa, reason = number
        key = (1, (reason & 0xFFFF) | (0x10000 if isa is Isa.SVM else 0))
        aggregates.exits.setdefault(key, Totals()).merge(totals)
        diagnosis.events += totals.count
    return aggregates


def has_count_column(header: str) -> bool:
    """Whether a CSV header has a column of counts, rather than one line per exit."""
    names = {name.strip().strip('"').lower() for name in re.split(r"[,;\t]", header)}
    return any(name in names for name in _COUNT_COLUMNS)


def _lines(text: str, parse: object, diagnosis: Diagnosis) -> Iterator[tuple[str, str, Totals]]:
    for number, line in enumerate(text.splitlines(), 1):
        where = f"line {number}"
        found = parse(line)  # type: ignore[operator]  # one of the functions below
        if found is not None:
            yield where, found[0], found[1]
        elif not _is_decoration(line):
            diagnosis.problem("unreadable line", where, f"not a count: {line.strip()[:120]!r}")


def _is_decoration(line: str) -> bool:
    """Headers, totals and notes that these tools print around their counts."""
    stripped = line.strip()
    return not stripped or bool(
        re.match(
            r"(?:Attaching|Analyze events|VM-EXIT|Event name|Total Samples|Display kvm|PID\b|TID\b|VCPU|KVM_EXIT_REASON"
            r"|Event\b|Total\b|Exits of |[-=#^+]|\d\d:\d\d:\d\d|kvm_\w+(?!\()\s+\d|kvm stat|Tracing|one L2)",
            stripped,
        )
    )


def _bpftrace(line: str) -> tuple[str, Totals] | None:
    match = _BPFTRACE.match(line)
    if match is None:
        return None
    keys = [key.strip() for key in match[1].split(",")]
    # With several keys the reason is the one that is a name; a lone number is a reason number.
    named = [key for key in keys if not key.isdecimal() and reason_number(key) is not None]
    if len(keys) > 1 and len(named) != 1:
        return None
    return (named or keys)[0], Totals(count=int(match[2]))


def _perf_kvm_stat(line: str) -> tuple[str, Totals] | None:
    match = _PERF_KVM.match(line)
    if match is None:
        return None
    count = int(match["count"])
    mean = float(match["mean"]) * 1000
    totals = Totals(
        count, count, round(mean * count), round(float(match["min"]) * 1000), round(float(match["max"]) * 1000)
    )
    error = float(match["error"]) / 100 if match["error"] and "nan" not in match["error"] else 0.0
    # The table gives the standard error of the mean; the sum of squares that leads to it restores the spread.
    totals.squares = count * mean * mean + (error * mean) ** 2 * count * max(count - 1, 0)
    return match["name"], totals


def _bcc(line: str) -> tuple[str, Totals] | None:
    match = _BCC.match(line)
    return (match["name"], Totals(count=int(match["count"]))) if match else None


def _kvm_stat(line: str) -> tuple[str, Totals] | None:
    match = _KVM_STAT.match(line)
    return (match["name"], Totals(count=int(match["count"]))) if match else None


def _csv(text: str, diagnosis: Diagnosis) -> Iterator[tuple[str, str, Totals]]:
    lines = text.splitlines()
    header = lines[0] if lines else ""
    separator = max(",;\t", key=header.count)
    names = [name.strip().strip('"').lower() for name in header.split(separator)]
    reason = next((names.index(name) for name in _REASON_COLUMNS if name in names), None)
    count = next((names.index(name) for name in _COUNT_COLUMNS if name in names), None)
    if reason is None or count is None:
        what = f"the CSV header {header.strip()[:120]!r} has no column for reason and count"
        diagnosis.problem("unreadable line", "line 1", what)
        return
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            row = next(csv.reader([line], delimiter=separator))
            name, exits = row[reason], int(row[count])
        except (IndexError, ValueError, csv.Error):
            exits = -1
        if not 0 <= exits < 10**18:
            diagnosis.problem("unreadable line", f"line {number}", f"not a reason and a count: {line[:120]!r}")
        else:
            yield f"line {number}", name, Totals(count=exits)
