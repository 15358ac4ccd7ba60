"""The table of VM-entry checks as a page of the documentation.

``python -m lzero.cpu.checks.document docs/vm-entry-checks.md`` writes it; a test compares the page with the table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .model import Check, CheckGroup, Outside
from .msr_lists import MSR_LIST_CHECKS
from .table import CHECKS

__all__ = ["main", "render"]

_HEAD = """# VM-entry checks

Generated from the table in `lzero.cpu.checks` by `python -m lzero.cpu.checks.document docs/vm-entry-checks.md`; do not
edit by hand.

The processor applies these rules to the VMCS that L0 enters, and nested VMX applies them to the VMCS that a guest
hypervisor enters, with the capabilities it was offered. The first rule that fails decides: rules on controls end in
VMfail with error 7, rules on the host-state area in VMfail with error 8, rules on the guest-state area in a VM exit
with reason 33 and the qualification shown. Sections are those of the Intel SDM, volume 3, editions since 083.

*Only with* names controls without which a rule says nothing. *Also* names what a rule looks at besides VMCS fields.
"""

_FAILS = {
    CheckGroup.CONTROLS: "VMfail, error 7",
    CheckGroup.HOST_STATE: "VMfail, error 8",
    CheckGroup.GUEST_STATE: "VM exit, reason 33",
}


def _row(check: Check) -> str:
    only = ", ".join(f"{type(flag).__name__}.{flag.name}" for flag in check.requires)
    also = "" if check.outside is Outside.NOTHING else check.outside.value
    fields = " ".join(f"`{field.name}`" for field in check.fields)
    cells = [f"`{check.id}`", check.section, check.rule, fields, only, also]
    if check.group is CheckGroup.GUEST_STATE:
        cells.append(str(check.qualification))
    return f"| {' | '.join(cells)} |"


def _group(group: CheckGroup) -> list[str]:
    checks = [check for check in CHECKS if check.group is group]
    columns = ["id", "SDM", "rule", "fields", "only with", "also"]
    if group is CheckGroup.GUEST_STATE:
        columns.append("qualification")
    title = f"## {group.value[0].upper()}{group.value[1:]}: {len(checks)} rules ({_FAILS[group]})"
    return [title, "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *map(_row, checks), ""]


def _msr_lists() -> list[str]:
    rows = [
        f"| `{check.id}` | {', '.join(sorted(kind.value for kind in check.kinds))} | {check.rule} |"
        for check in MSR_LIST_CHECKS
    ]
    intro = (
        "A bad entry of the VM-entry MSR-load area ends the entry with exit reason 34 and the entry's number, counted\n"
        "from 1, as qualification; a bad entry of a VM-exit area is a VMX abort. WRMSR or RDMSR must besides not fault."
    )
    title = f"## Entries of MSR areas: {len(MSR_LIST_CHECKS)} rules"
    return [title, "", intro, "", "| id | SDM | rule |", "| --- | --- | --- |", *rows, ""]


def render() -> str:
    """The whole page."""
    lines = [_HEAD]
    for group in CheckGroup:
        lines += _group(group)
    lines += _msr_lists()
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page to the file named, or to standard output."""
    if len(arguments) > 1:
        sys.stderr.write("usage: python -m lzero.cpu.checks.document [FILE]\n")
        return 64
    if arguments:
        Path(arguments[0]).write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
