"""An audit as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from lzero.dispatch.audit.branches import BranchKind, IndirectBranch
from lzero.dispatch.audit.chain import Shape
from lzero.dispatch.audit.rates import DispatchRate
from lzero.dispatch.audit.report import AuditDifference, ModuleAudit

__all__ = ["render_audit", "render_difference", "render_rate"]

_REMAIN = (BranchKind.RETPOLINE, BranchKind.RETPOLINE_INLINE, BranchKind.LFENCE, BranchKind.PLAIN)
_GROUPED = (BranchKind.PV_OPS, BranchKind.STATIC_CALL)


def _columns(rows: Sequence[tuple[str, ...]], indent: str = "  ") -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        yield (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def render_audit(audit: ModuleAudit, all_sites: bool = False) -> str:
    """The whole audit; ``all_sites`` lists every pv_ops and static-call site instead of counts per function."""
    return "\n".join(_audit_lines(audit, all_sites)) + "\n"


def _audit_lines(audit: ModuleAudit, all_sites: bool) -> Iterator[str]:
    yield f"{audit.path}: {audit.name}, {audit.version_magic or 'no vermagic'}"
    yield f"  {audit.function_count} functions; {'; '.join(audit.compilers) or 'compiler not recorded'}"
    yield ""
    yield from _branch_lines(audit, all_sites)
    yield ""
    yield from _dispatch_lines(audit)
    yield ""
    yield from _table_lines(audit)


def _branch_lines(audit: ModuleAudit, all_sites: bool) -> Iterator[str]:
    yield "Indirect branches"
    yield from _columns(
        [(kind.value, str(audit.count(kind)), _NOTES[kind]) for kind in BranchKind if audit.count(kind)]
    )
    remaining = audit.of_kind(*_REMAIN)
    yield ""
    yield "Remaining at run time, by function" if remaining else "None remains at run time"
    yield from _columns([_site_row(branch) for branch in remaining])
    for kind in _GROUPED:
        found = audit.of_kind(kind)
        if not found:
            continue
        yield ""
        if all_sites:
            yield f"{kind.value} sites"
            yield from _columns([_site_row(branch) for branch in found])
        else:
            yield f"{kind.value} sites by target (all sites: --all)"
            targets = Counter(branch.operand for branch in found)
            yield from _columns(
                [(str(count), target) for target, count in sorted(targets.items(), key=lambda t: (-t[1], t[0]))]
            )


_NOTES = {
    BranchKind.RETPOLINE: "stay retpolines unless the kernel patches .retpoline_sites for this CPU",
    BranchKind.RETPOLINE_INLINE: "cannot be patched",
    BranchKind.LFENCE: "AMD's older mitigation",
    BranchKind.PV_OPS: "patched to direct calls or instructions at boot",
    BranchKind.STATIC_CALL: "direct branches that the kernel re-targets",
    BranchKind.PLAIN: "as the compiler or an assembly file left them",
}


def _site_row(branch: IndirectBranch) -> tuple[str, ...]:
    where = branch.function or "(no symbol)"
    notes = ["call" if branch.is_call else "tail call"]
    if branch.runs_once:
        notes.append("at load only")
    if not branch.patched:
        notes.append("not listed for patching")
    target = (
        f"{branch.operand} = {branch.through}"
        if branch.through and branch.through != branch.operand
        else branch.operand
    )
    return (where, f"{branch.section}+{branch.offset:#x}", branch.kind.value, target, ", ".join(notes))


def _number(audit: ModuleAudit, reason: int) -> str:
    """A reason as its manual writes it: Intel's in decimal, AMD's in hex."""
    return f"{reason:#x}" if audit.vendor == "svm" else str(reason)


def _dispatch_lines(audit: ModuleAudit) -> Iterator[str]:
    dispatch = audit.dispatch
    yield f"Dispatch: {dispatch.function or 'not found'}: {dispatch.shape.value}"
    rows = [
        (
            f"{number}.",
            test.relation,
            _number(audit, test.reason),
            audit.reason_name(test.reason),
            f"first goes to {test.leads_to}",
        )
        for number, test in enumerate(dispatch.tests, start=1)
    ]
    yield from _columns(rows)
    if dispatch.bound is not None:
        guards = [f"reasons up to {dispatch.bound}"]
        guards.append("index clamped against speculation" if dispatch.speculation_clamp else "index not clamped")
        guards.append("empty slots tested" if dispatch.null_check else "empty slots not tested")
        yield f"  table: {', '.join(guards)}"
    for text in dispatch.unknown:
        yield f"  not understood: {text}"
    if dispatch.shape is Shape.UNKNOWN and dispatch.tests:
        yield "  the tests above are what was recognised, and may not be all"


def _table_lines(audit: ModuleAudit) -> Iterator[str]:
    table = audit.table
    if table is None:
        yield "Handler table: none of the known tables is defined here"
        return
    access = "writable" if table.writable else "read-only"
    size = f"{table.slots} slots, {len(table.handlers)} filled"
    yield f"Handler table: {table.symbol} in {table.section} ({access}), {size}"
    rows = []
    for reason in sorted({*table.handlers, *table.overrides}):
        later = table.overrides.get(reason)
        handler = table.handlers.get(reason, "(empty)")
        tested = "tested before the table" if reason in audit.dispatch.direct_reasons else ""
        rows.append(
            (_number(audit, reason), audit.reason_name(reason), f"{handler} -> {later}" if later else handler, tested)
        )
    yield from _columns(rows)
    if table.overridden_by:
        yield f"  (a -> b: {table.overridden_by} stores b at load when nested virtualisation is enabled)"


def render_rate(audit: ModuleAudit, rate: DispatchRate) -> str:
    """The profile's part of the report."""
    return "\n".join(_rate_lines(audit, rate)) + "\n"


def _rate_lines(audit: ModuleAudit, rate: DispatchRate) -> Iterator[str]:
    what = "retpolines" if rate.retpoline else "indirect branches"
    yield f"Profile {rate.profile}: {rate.exits} exits reach the dispatcher"
    through = sum(rate.through_table.values())
    yield f"  {through} of them ({rate.table_share:.1%}) go through the table, one of the {what} each"
    if rate.per_second is None or rate.exits_per_second is None:
        yield "  per second: not known, the profile has no times; --exits-per-second N scales it"
    else:
        speed = f"{rate.exits_per_second:,.0f} exits per second ({rate.rate_from})"
        yield f"  {rate.per_second:,.0f} {what} per second at {speed}"
    top = sorted(rate.through_table.items(), key=lambda item: -item[1])[:10]
    yield from _columns(
        [(audit.reason_name(reason), str(count), f"{count / rate.exits:.1%}") for reason, count in top], "    "
    )
    for reason, count in sorted(rate.without_handler.items()):
        yield f"  {audit.reason_name(reason)}: {count} exits, but this module has no handler for it"
    yield "  (the dispatch site only: how often the other sites run cannot be told from exit reasons)"


def render_difference(first: ModuleAudit, second: ModuleAudit, difference: AuditDifference) -> str:
    """What differs between two modules."""
    return "\n".join(_difference_lines(first, second, difference)) + "\n"


def _difference_lines(first: ModuleAudit, second: ModuleAudit, difference: AuditDifference) -> Iterator[str]:
    yield f"Against {second.path}: {second.name}, {second.version_magic or 'no vermagic'}"
    if difference.same:
        yield "  the same branches by function, the same tests, the same table"
        return
    counts = [(kind.value, str(first.count(kind)), str(second.count(kind))) for kind in BranchKind]
    yield from _columns([("", "this", "other"), *(row for row in counts if row[1] != "0" or row[2] != "0")])
    if difference.branches:
        yield "  by function"
        rows = [(function, kind.value, str(left), str(right)) for function, kind, left, right in difference.branches]
        yield from _columns(rows, "    ")
    if difference.tests:
        yield "  tests"
        for number, (left, right) in enumerate(difference.tests, start=1):
            names = [
                "-" if test is None else f"{test.relation} {audit.reason_name(test.reason)}"
                for audit, test in ((first, left), (second, right))
            ]
            yield f"    {number}. {names[0]:<28} {names[1]}"
    else:
        yield "  the same tests in the same order"
    if difference.handlers:
        yield "  handlers"
        rows = [
            (_number(first, reason), first.reason_name(reason), one or "(empty)", two or "(empty)")
            for reason, one, two in difference.handlers
        ]
        yield from _columns(rows, "    ")
    else:
        yield "  the same handler table"
