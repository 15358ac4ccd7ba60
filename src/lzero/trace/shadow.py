"""Which VMCS fields to shadow for L1, from the fields a trace shows it using.

A field in the VMREAD bitmap saves the exit of each VMREAD of it, one in the VMWRITE bitmap that of each VMWRITE.
But L0 keeps its own copy of L1's VMCS, so each shadowed field is copied for every L2 exit that L1 handles. A field
pays when what it saves is more than that. The plan chooses for each field on its own, which is optimal in this
model since neither saving nor cost of one field depends on another.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any

from lzero.errors import PlanError, UsageError
from lzero.trace.aggregates import Aggregates
from lzero.trace.names import field_name, field_number

__all__ = [
    "Costs",
    "FieldUse",
    "Mode",
    "ShadowPlan",
    "ShadowSet",
    "kernel_list",
    "kvm_set",
    "plan_shadow",
    "plan_table",
    "plan_toml",
]

_VMREAD = 23
_VMWRITE = 25
_RARE = 0.01  # accesses per L2 exit under which an unplanned field is not listed
_HIGH_HALF = 1  # bit 0 of a field encoding: the access is to the high 32 bits of a 64-bit field (SDM 25.11.2)


class Mode(Enum):
    """How a field is shadowed."""

    NONE = "none"
    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


@dataclass(frozen=True, slots=True)
class Costs:
    """Cycles that an avoided exit saves, and that one shadowed field costs per L2 exit reflected to L1."""

    exit_cycles: float
    exit_low: float
    exit_high: float
    sync_cycles: float
    sources: tuple[str, ...]

    @classmethod
    def load(cls, path: Path | None = None) -> Costs:
        """The costs in a TOML file, by default those that come with lzero.

        Raises
        ------
        UsageError
            The file cannot be read, or a value is missing, not a number, or negative.
        """
        try:
            if path is None:
                text = resources.files("lzero.trace").joinpath("shadow_costs.toml").read_text("utf-8")
            else:
                text = path.read_text("utf-8")
            table: dict[str, Any] = tomllib.loads(text)
            exit_table, sync = table["exit"], table["sync"]
            cycles = float(exit_table["cycles"])
            low, high = float(exit_table.get("low", cycles)), float(exit_table.get("high", cycles))
            sync_cycles = float(sync["cycles"])
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read costs from {path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}: needs numbers exit.cycles and sync.cycles: {error}") from error
        if min(low, sync_cycles) < 0 or not low <= cycles <= high:
            raise UsageError(f"{path}: costs must not be negative, and low <= cycles <= high")
        sources = tuple(str(part.get("source", "no source given")) for part in (exit_table, sync))
        return cls(cycles, low, high, sync_cycles, sources)


@dataclass(frozen=True, slots=True)
class ShadowSet:
    """Fields to shadow, by encoding: those only VMREAD may touch without an exit, and those VMWRITE may too."""

    read_only: frozenset[int]
    read_write: frozenset[int]

    @classmethod
    def load(cls, path: Path) -> ShadowSet:
        """A set from a ``--shadow-vmcs`` TOML file: arrays ``read_only`` and ``read_write`` of field names in
        ``[shadow]``.

        Raises
        ------
        UsageError
            The file cannot be read, or names an unknown field, or a field twice.
        """
        try:
            table = tomllib.loads(path.read_text("utf-8")).get("shadow")
        except OSError as error:
            raise UsageError(f"{path}: the shadow set cannot be read: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: the shadow set is no TOML: {error}") from error
        if not isinstance(table, dict) or not table.keys() & {"read_only", "read_write"}:
            raise UsageError(
                f"{path}: has no table [shadow] with arrays read_only and read_write; see docs/shadow-vmcs.md"
            )
        read_only, read_write = (_names(path, table.get(key, [])) for key in ("read_only", "read_write"))
        names = [*read_only, *read_write]
        for name in names:
            try:
                field_number(name)
            except KeyError as error:
                raise UsageError(f"{path}: {name!r} is no VMCS field; use the SDM's or KVM's name") from error
        numbers = Counter(field_number(name) for name in names)
        twice = [field_name(number) for number, count in numbers.items() if count > 1]
        if twice:
            raise UsageError(f"{path}: listed twice: {', '.join(twice)}")
        return cls(frozenset(map(field_number, read_only)), frozenset(map(field_number, read_write)))

    def mode(self, encoding: int) -> Mode:
        """How the set treats a field."""
        if encoding in self.read_write:
            return Mode.READ_WRITE
        return Mode.READ_ONLY if encoding in self.read_only else Mode.NONE

    def __len__(self) -> int:
        return len(self.read_only) + len(self.read_write)


@dataclass(frozen=True, slots=True)
class FieldUse:
    """How often L1 accessed a field, with and without an exit together."""

    encoding: int
    reads: int
    writes: int

    def avoided(self, mode: Mode) -> int:
        """Exits that shadowing in this mode avoids."""
        return 0 if mode is Mode.NONE else self.reads + (self.writes if mode is Mode.READ_WRITE else 0)


@dataclass(frozen=True, slots=True)
class ShadowPlan:
    """A chosen set with what it is predicted to do.

    Attributes
    ----------
    uses:
        Every field that L1 accessed, most accesses first.
    chosen, kvm:
        The planned set, and KVM's own, for comparison.
    syncs:
        L2 exits that L1 handled: how often the shadow is copied.
    costs:
        What was assumed.
    """

    uses: tuple[FieldUse, ...]
    chosen: ShadowSet
    kvm: ShadowSet
    syncs: int
    costs: Costs

    @property
    def accesses(self) -> int:
        """VMREADs and VMWRITEs of L1 in the trace."""
        return sum(use.reads + use.writes for use in self.uses)

    def removed(self, shadow: ShadowSet) -> int:
        """Exits that a set avoids, compared with no shadow VMCS."""
        return sum(use.avoided(shadow.mode(use.encoding)) for use in self.uses)

    def saved_cycles(self, shadow: ShadowSet, exit_cycles: float | None = None) -> float:
        """Cycles that a set saves net of syncing, over the whole trace; negative when it costs more than it saves."""
        per_exit = self.costs.exit_cycles if exit_cycles is None else exit_cycles
        return self.removed(shadow) * per_exit - len(shadow) * self.syncs * self.costs.sync_cycles


def _names(path: Path, names: object) -> list[str]:
    if not isinstance(names, list):
        raise UsageError(f"{path}: read_only and read_write are lists of VMCS field names")
    return [str(name) for name in names]


def kvm_set() -> ShadowSet:
    """The fields KVM shadows for its guests (``vmcs_shadow_fields.h``)."""
    from lzero.sdm.vmcs_fields import VMCS_FIELDS

    return ShadowSet(
        frozenset(row.encoding for row in VMCS_FIELDS.values() if row.in_kvm_shadow_ro),
        frozenset(row.encoding for row in VMCS_FIELDS.values() if row.in_kvm_shadow_rw),
    )


def field_uses(counts: Mapping[tuple[int, int, bool], int]) -> list[FieldUse]:
    """Accesses per field, both halves of a 64-bit field together, from the counts of :class:`Aggregates`."""
    from lzero.sdm.vmcs_fields import VMCS_FIELDS

    reads: Counter[int] = Counter()
    writes: Counter[int] = Counter()
    for (reason, encoding, _), count in counts.items():
        base = encoding & ~_HIGH_HALF
        if base not in VMCS_FIELDS:
            continue  # an access to a field that does not exist fails, shadowed or not
        if reason == _VMREAD:
            reads[base] += count
        elif reason == _VMWRITE:
            writes[base] += count
    uses = [FieldUse(encoding, reads[encoding], writes[encoding]) for encoding in {*reads, *writes}]
    return sorted(uses, key=lambda use: (-use.reads - use.writes, use.encoding))


def plan_shadow(aggregates: Aggregates, costs: Costs) -> ShadowPlan:
    """The set that saves most, given the costs.

    Raises
    ------
    PlanError
        The trace names no VMCS fields, so nothing is known of what L1 uses.
    """
    from lzero.sdm.vmcs_fields import VMCS_FIELDS, Kind

    uses = field_uses(aggregates.fields)
    if not uses:
        raise PlanError(
            "the trace has no VMREAD or VMWRITE with a VMCS field: record a nested guest with `lzero run --record` "
            "(traces of real KVM hosts do not say which field an exit was about)"
        )
    syncs = sum(aggregates.reflected.values())
    modes: dict[int, Mode] = {}
    for use in uses:
        # Exit information cannot be written but by processors that allow VMWRITE to any field, so only its reads count.
        writable = VMCS_FIELDS[use.encoding].kind is not Kind.EXIT_INFORMATION
        mode = Mode.READ_WRITE if writable and use.writes else Mode.READ_ONLY
        if use.avoided(mode) * costs.exit_cycles > syncs * costs.sync_cycles:
            modes[use.encoding] = mode
    chosen = ShadowSet(
        frozenset(encoding for encoding, mode in modes.items() if mode is Mode.READ_ONLY),
        frozenset(encoding for encoding, mode in modes.items() if mode is Mode.READ_WRITE),
    )
    return ShadowPlan(tuple(uses), chosen, kvm_set(), syncs, costs)


def _rate(plan: ShadowPlan, use: FieldUse) -> float:
    return (use.reads + use.writes) / plan.syncs if plan.syncs else float("inf")


def plan_table(plan: ShadowPlan) -> str:
    """The plan as text: each field's use, choice and gain, then totals against KVM's own set."""
    shown = [use for use in plan.uses if plan.chosen.mode(use.encoding) is not Mode.NONE or _rate(plan, use) >= _RARE]
    width = max([20, *(len(field_name(use.encoding)) for use in shown)])
    lines = [f"{'field':<{width}} {'VMREADs':>10} {'VMWRITEs':>10} {'per L2 exit':>12} {'planned':>11} {'KVM':>11}"]
    for use in shown:
        lines.append(
            f"{field_name(use.encoding):<{width}} {use.reads:>10} {use.writes:>10} {_rate(plan, use):>12.2f} "
            f"{plan.chosen.mode(use.encoding).value:>11} {plan.kvm.mode(use.encoding).value:>11}"
        )
    lines += [
        "",
        f"{plan.accesses} VMREADs and VMWRITEs of L1; the shadow is copied for {plan.syncs} reflected L2 exits.",
    ]
    for name, shadow in (("planned set", plan.chosen), ("KVM's set", plan.kvm)):
        removed = plan.removed(shadow)
        share = 100 * removed / plan.accesses if plan.accesses else 0.0
        low, middle, high = (
            plan.saved_cycles(shadow, cycles) / 1e6
            for cycles in (plan.costs.exit_low, plan.costs.exit_cycles, plan.costs.exit_high)
        )
        lines.append(
            f"{name:>12}: {len(shadow):>3} fields, {removed} exits fewer ({share:.1f} %),"
            f" saves {middle:.1f} Mcycles ({low:.1f} to {high:.1f})"
        )
    lines += [f"assumed: {source}" for source in plan.costs.sources]
    return "\n".join(lines) + "\n"


def kernel_list(shadow: ShadowSet) -> str:
    """The set as lines of the kernel's field list, by width as that file is ordered.

    Raises
    ------
    PlanError
        A field has no name in KVM.
    """
    from lzero.sdm.vmcs_fields import VMCS_FIELDS

    blocks: dict[str, list[str]] = {}
    for macro, encodings in (("RO", shadow.read_only), ("RW", shadow.read_write)):
        for encoding in sorted(encodings):
            row = VMCS_FIELDS[encoding]
            if row.kvm_name is None:
                raise PlanError(f"{row.name}: KVM has no such field, so it cannot be in the kernel's list")
            line = f"SHADOW_FIELD_{macro}({row.kvm_name}, {row.kvm_name.lower()})"
            blocks.setdefault(row.width.name, []).append(line)
    order = ("W16", "W32", "NATURAL", "W64")
    return "\n\n".join("\n".join(blocks[width]) for width in order if width in blocks) + "\n"


def plan_toml(plan: ShadowPlan) -> str:
    """The planned set as the TOML that ``lzero run --shadow-vmcs`` reads, with what was predicted."""

    def names(encodings: Iterable[int]) -> str:
        listed = "".join(f'    "{field_name(encoding)}",\n' for encoding in sorted(encodings))
        return f"[\n{listed}]"

    return (
        "[shadow]\n"
        f"read_only = {names(plan.chosen.read_only)}\n"
        f"read_write = {names(plan.chosen.read_write)}\n"
        "\n[predicted]\n"
        f"accesses = {plan.accesses}\n"
        f"exits_removed = {plan.removed(plan.chosen)}\n"
        f"syncs = {plan.syncs}\n"
        f"cycles_saved = {round(plan.saved_cycles(plan.chosen))}\n"
    )
