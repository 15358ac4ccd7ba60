"""Verdicts on budgets as JUnit XML, which CI servers show as tests."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from lzero.testing.budget import Verdict

__all__ = ["junit"]


def junit(trace: str, verdicts: Sequence[Verdict], details: str) -> str:
    """An XML document with one test case for each budget.

    Parameters
    ----------
    trace:
        Name of what was checked; becomes the test suite's name.
    verdicts:
        The test cases: a budget that was not kept is a failure.
    details:
        Text attached to every failure: tables, causes, differences.
    """
    broken = sum(not verdict.kept for verdict in verdicts)
    suite = ElementTree.Element(
        "testsuite", name=f"lzero budget: {trace}", tests=str(len(verdicts)), failures=str(broken), errors="0"
    )
    for verdict in verdicts:
        budget = verdict.budget
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"budget.L{budget.level}.{budget.reason}", name=budget.metric
        )
        if not verdict.kept:
            failure = ElementTree.SubElement(case, "failure", message=_printable(str(verdict)))
            failure.text = _printable(details)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    # XML 1.0 has no way to write a control character, not even an escaped one.
    return "".join(char if char in "\t\n" or char.isprintable() else "?" for char in text)
