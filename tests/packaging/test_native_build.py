"""The C parts are compiled once into the user's cache; without a compiler there is one clear error."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from lzero.native_build import NativeBuildError, build_library, cache_directory, source_digest


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "seven.c"
    path.write_text("int seven(void) { return 7; }\n")
    return path


def test_a_library_is_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = source_digest(source.parent)
    built = build_library("seven", [source], digest)
    assert built.parent == cache_directory()
    assert ctypes.CDLL(str(built)).seven() == 7
    monkeypatch.setenv("PATH", "/nonexistent")
    assert build_library("seven", [source], digest) == built


def test_other_sources_are_another_library(source: Path) -> None:
    before = source_digest(source.parent)
    source.with_name("seven.h").write_text("/* new */")
    assert source_digest(source.parent) != before


def test_no_compiler_is_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NativeBuildError, match="no C compiler was found"):
        build_library("seven", [source], "0")


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(source: Path) -> None:
    source.write_text("this is no C\n")
    with pytest.raises(NativeBuildError, match=r"failed:\n(?s:.*)seven\.c:1"):
        build_library("seven", [source], "0")
    assert not list(cache_directory().iterdir())
