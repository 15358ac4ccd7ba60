"""Strategies as files: the ``PLAN.json`` that the planner writes and ``run``, ``prove``, ``emit`` and ``bench`` read.

The file is distrusted: every name and number in it is checked, and what is wrong is said with its place in the file.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lzero.dispatch.strategies import STRATEGIES, Provenance, Strategy
from lzero.dispatch.tree import (
    MAX_DEPTH,
    Case,
    Condition,
    ConditionName,
    Eq,
    IndirectTable,
    Leaf,
    Less,
    Node,
    OutOfLine,
    Patch,
    Range,
    Slot,
    Switch,
    Unexpected,
)
from lzero.errors import PlanError, UsageError
from lzero.output import write_atomically

__all__ = [
    "FORMAT",
    "VERSION",
    "load_strategy",
    "read_plan",
    "strategy_from_json",
    "strategy_to_json",
    "write_plan",
]

FORMAT = "lzero-dispatch-plan"
VERSION = 1
"""Raised when a reader of the old version would misunderstand the new one."""

MAX_FILE_BYTES = 64 << 20
"""No plan is larger; a wrong file given by mistake is refused before it is read."""

Json = dict[str, Any]


def strategy_to_json(strategy: Strategy) -> Json:
    """The JSON form of a strategy; :func:`strategy_from_json` is its inverse."""
    document: Json = {
        "format": FORMAT,
        "version": VERSION,
        "name": strategy.name,
        "label": strategy.label,
        "summary": strategy.summary,
        "keeps_order": strategy.keeps_order,
        "tree": _node_to_json(strategy.root),
    }
    if strategy.provenance is not None:
        p = strategy.provenance
        document["provenance"] = {
            "source": p.source,
            "date": p.date,
            "samples": p.samples,
            "cpu": p.cpu,
            "mitigation": p.mitigation,
            "expected_gain": p.expected_gain,
            "model": p.model,
            "details": dict(p.details),
        }
    return document


def _node_to_json(node: Node) -> Json:
    match node:
        case Leaf():
            return {"node": "leaf", "handler": node.handler}
        case Unexpected():
            return {"node": "unexpected"}
        case Eq():
            return {"node": "eq", "reason": node.reason, **_arms(node)}
        case Less():
            return {"node": "less", "bound": node.bound, **_arms(node)}
        case Range():
            return {"node": "range", "first": node.first, "last": node.last, **_arms(node)}
        case Condition():
            return {"node": "condition", "test": node.test.value, **_arms(node)}
        case Switch():
            cases = [{"first": case.first, "last": case.last, "then": _node_to_json(case.then)} for case in node.cases]
            return {"node": "switch", "cases": cases, "default": _node_to_json(node.default)}
        case IndirectTable():
            patches = [
                {"condition": patch.condition.value, "slots": _slots_to_json(patch.slots)} for patch in node.patches
            ]
            return {"node": "table", "const": node.const, "slots": _slots_to_json(node.slots), "patches": patches}
        case OutOfLine():
            return {"node": "out_of_line", "function": node.function, "body": _node_to_json(node.body)}


def _arms(node: Eq | Less | Range | Condition) -> Json:
    return {"then": _node_to_json(node.then), "otherwise": _node_to_json(node.otherwise)}


def _slots_to_json(slots: tuple[Slot, ...]) -> list[Json]:
    return [{"reason": slot.reason, "target": _node_to_json(slot.target)} for slot in slots]


class _Reader:
    """One JSON object and where it stands in the file, so that every complaint names its place."""

    def __init__(self, value: object, place: str, depth: int = 0) -> None:
        if not isinstance(value, dict):
            raise PlanError(f"{place}: expected an object, found {_kind(value)}")
        if depth > MAX_DEPTH:
            raise PlanError(f"{place}: tree is more than {MAX_DEPTH} nodes deep")
        self.value: Json = value
        self.place = place
        self.depth = depth

    def get(self, key: str, kind: type, default: object = ...) -> Any:
        found = self.value.get(key, default)
        if found is ...:
            raise PlanError(f"{self.place}: {key!r} is missing")
        if found is default:
            return found
        # bool is an int to Python, but not to a reader of plans.
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise PlanError(f"{self.place}.{key}: expected {kind.__name__}, found {_kind(found)}")
        return found

    def integer(self, key: str) -> int:
        return int(self.get(key, int))

    def text(self, key: str, default: object = ...) -> str:
        return str(self.get(key, str, default))

    def objects(self, key: str) -> list[_Reader]:
        items = self.get(key, list)
        return [_Reader(item, f"{self.place}.{key}[{index}]", self.depth + 1) for index, item in enumerate(items)]

    def object(self, key: str) -> _Reader:
        return _Reader(self.get(key, dict), f"{self.place}.{key}", self.depth + 1)

    def node(self, key: str) -> Node:
        return _node_from_json(self.object(key))

    def condition(self, key: str) -> ConditionName:
        name = self.text(key)
        try:
            return ConditionName(name)
        except ValueError:
            known = ", ".join(ConditionName)
            raise PlanError(f"{self.place}.{key}: unknown condition {name!r} (known: {known})") from None


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _slots(reader: _Reader) -> tuple[Slot, ...]:
    slots = []
    for item in reader.objects("slots"):
        target = item.node("target")
        if not isinstance(target, Leaf | OutOfLine):
            raise PlanError(f"{item.place}.target: a table slot holds a function, not a {type(target).__name__}")
        slots.append(Slot(item.integer("reason"), target))
    return tuple(slots)


_BUILDERS: Mapping[str, Callable[[_Reader], Node]] = {
    "leaf": lambda r: Leaf(r.text("handler")),
    "unexpected": lambda r: Unexpected(),
    "eq": lambda r: Eq(r.integer("reason"), r.node("then"), r.node("otherwise")),
    "less": lambda r: Less(r.integer("bound"), r.node("then"), r.node("otherwise")),
    "range": lambda r: Range(r.integer("first"), r.integer("last"), r.node("then"), r.node("otherwise")),
    "condition": lambda r: Condition(r.condition("test"), r.node("then"), r.node("otherwise")),
    "switch": lambda r: Switch(
        tuple(Case(case.integer("first"), case.integer("last"), case.node("then")) for case in r.objects("cases")),
        r.node("default"),
    ),
    "table": lambda r: IndirectTable(
        _slots(r),
        tuple(Patch(patch.condition("condition"), _slots(patch)) for patch in r.objects("patches")),
        bool(r.get("const", bool)),
    ),
    "out_of_line": lambda r: OutOfLine(r.text("function"), r.node("body")),
}


def _node_from_json(reader: _Reader) -> Node:
    kind = reader.text("node")
    builder = _BUILDERS.get(kind)
    if builder is None:
        raise PlanError(f"{reader.place}.node: unknown kind {kind!r} (known: {', '.join(_BUILDERS)})")
    try:
        return builder(reader)
    except PlanError as error:
        # A node's own validation does not know where it stands; the reader's complaints already begin with the place.
        if str(error).startswith("tree"):
            raise
        raise PlanError(f"{reader.place}: {error}") from None


def strategy_from_json(document: object, name: str = "plan") -> Strategy:
    """Build a strategy from its JSON form; :class:`PlanError` names the first thing that is wrong."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PlanError(f"not a dispatch plan: no {FORMAT!r} in its 'format'")
    version = document.get("version")
    if version != VERSION:
        raise PlanError(f"plan is of version {version!r}, this lzero reads version {VERSION}: make the plan again")
    reader = _Reader(document, "tree")
    root = reader.object("tree")
    root.place = "tree"
    return Strategy(
        name=reader.text("name", name),
        label=reader.text("label", ""),
        summary=reader.text("summary", ""),
        root=_node_from_json(root),
        keeps_order=bool(reader.get("keeps_order", bool, True)),
        provenance=_provenance(reader),
    )


def _provenance(reader: _Reader) -> Provenance | None:
    if reader.value.get("provenance") is None:
        return None
    origin = reader.object("provenance")
    origin.place = "provenance"
    return Provenance(
        source=origin.text("source", ""),
        date=origin.text("date", ""),
        samples=origin.get("samples", int, None),
        cpu=origin.text("cpu", ""),
        mitigation=origin.text("mitigation", ""),
        expected_gain=origin.text("expected_gain", ""),
        model=origin.text("model", ""),
        details=origin.get("details", dict, {}),
    )


def read_plan(path: Path) -> Strategy:
    """Read a plan file; :class:`PlanError` names the file and what is wrong in it."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PlanError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, so no plan")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise PlanError(f"{path}: not a dispatch plan: not text") from None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(f"{path}: not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise PlanError(f"{path}: nested too deeply to be a plan") from None
    try:
        return strategy_from_json(document, path.stem)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def write_plan(path: Path, strategy: Strategy) -> None:
    """Write a plan file, whole or not at all."""
    write_atomically(path, json.dumps(strategy_to_json(strategy), indent=1) + "\n")


def load_strategy(name_or_path: str | Path) -> Strategy:
    """A strategy by name, the first one of a label (``S1``..``S7``), or the plan in a ``.json`` file.

    Raises
    ------
    UsageError
        Neither a known name nor an existing file.
    PlanError
        The file is no valid plan.
    """
    name = str(name_or_path)
    if name in STRATEGIES:
        return STRATEGIES[name]
    labelled = next((strategy for strategy in STRATEGIES.values() if strategy.label == name.upper()), None)
    if labelled is not None and name:
        return labelled
    path = Path(name_or_path)
    if path.is_file():
        return read_plan(path)
    if path.suffix == ".json" or "/" in name:
        raise UsageError(f"{name}: no such plan file")
    close = difflib.get_close_matches(name, STRATEGIES, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    known = ", ".join(STRATEGIES)
    raise UsageError(f"unknown dispatch strategy {name!r}: {hint}known are {known}, S1 to S7, or a PLAN.json")
