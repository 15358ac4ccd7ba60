"""Random trees for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from lzero.dispatch.tree import (
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

HANDLER_NAMES = [f"handle_{letter}" for letter in "abcdefgh"]

# Mostly small numbers, so that tests on one path interact; sometimes the edges of the 16-bit field.
reasons = st.integers(0, 40) | st.sampled_from([0, 1, 85, 86, 255, 256, 32767, 32768, 65534, 65535])
leaves = st.sampled_from(HANDLER_NAMES).map(Leaf)


@st.composite
def slots(draw: st.DrawFn) -> tuple[Slot, ...]:
    numbers = draw(st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True))
    return tuple(Slot(number, draw(leaves)) for number in numbers)


@st.composite
def tables(draw: st.DrawFn) -> IndirectTable:
    patches = [Patch(ConditionName.NESTED, draw(slots()))] if draw(st.booleans()) else []
    return IndirectTable(draw(slots()), tuple(patches))


def _range(pair: tuple[int, int], then: Node, otherwise: Node) -> Range:
    return Range(min(pair), max(pair), then, otherwise)


@st.composite
def switches(draw: st.DrawFn, inner: st.SearchStrategy[Node]) -> Switch:
    edges = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=10)))
    cases = [
        Case(low, high - 1, draw(inner)) for low, high in zip(edges, edges[1:], strict=False) if draw(st.booleans())
    ]
    return Switch(tuple(draw(st.permutations(cases))), draw(inner))


def _extend(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return (
        st.builds(Eq, reasons, inner, inner)
        | st.builds(Less, reasons.filter(bool), inner, inner)
        | st.builds(_range, st.tuples(reasons, reasons), inner, inner)
        | st.builds(Condition, st.sampled_from(list(ConditionName)), inner, inner)
        | switches(inner)
    )


trees: st.SearchStrategy[Node] = st.recursive(leaves | st.just(Unexpected()) | tables(), _extend, max_leaves=25)


def out_of_line(tree: Node) -> OutOfLine:
    return OutOfLine("handle_elsewhere", tree)
