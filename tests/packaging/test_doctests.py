"""The examples in docstrings and in the documentation say what really comes out."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def with_examples(*patterns: str) -> list[str]:
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    return sorted(str(path.relative_to(ROOT)) for path in found if ">>> " in path.read_text())


@pytest.mark.parametrize("path", with_examples("src/**/*.py"))
def test_docstrings(path: str) -> None:
    name = path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    outcome = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert outcome.attempted and not outcome.failed


@pytest.mark.parametrize("path", with_examples("README.md", "docs/**/*.md"))
def test_documents(path: str) -> None:
    outcome = doctest.testfile(
        str(ROOT / path), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert outcome.attempted and not outcome.failed
