"""The public API is what ``__all__`` says, and loading it is light."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import lzero

HEAVY = {"dask", "distributed", "iced_x86", "numpy", "plotly", "polars", "rich", "unicorn"}
"""Packages that a user who only asks for help, or only reads a trace, should not wait for."""


def loaded_by(statement: str) -> set[str]:
    """Top-level packages and ``lzero`` modules that a fresh interpreter has loaded after the statement."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nsys.stderr.write(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {name if name.startswith("lzero") else name.split(".")[0] for name in done.stderr.split()}


def test_all_names_exactly_what_is_visible() -> None:
    eager = {
        name
        for name, value in vars(lzero).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "lzero").startswith("lzero")
        and name not in ("annotations", "TYPE_CHECKING")
    }
    assert sorted(eager | set(lzero._LOADED_ON_USE)) == lzero.__all__


@pytest.mark.parametrize("name", lzero.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(lzero, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Machin'"):
        lzero.Machin  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import lzero",
        "import lzero.options, lzero.result",
        "import lzero.trace",
        "import lzero.dispatch",
        "import lzero.sdm",
        "import lzero.cli",
        "import lzero.cli.run",
        "from lzero.cli import main; main(['--help'])",
        "from lzero.cli import main; main(['run', '--help'])",
        "from lzero.cli import main; main(['run', '/nowhere'])",
        "import lzero.testing.plugin",
    ],
)
def test_light_to_load(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_help_loads_no_sub_command() -> None:
    loaded = loaded_by("from lzero.cli import main; main(['--help'])")
    # What Typer itself needs is 45 ms; the whole of `lzero --help` stays under 0.2 s while this list stays short.
    assert {name for name in loaded if name.startswith("lzero")} == {
        "lzero",
        "lzero.cli",
        "lzero.cli.lazy",
        "lzero.errors",
    }


@pytest.mark.parametrize("package", ["trace", "dispatch", "report", "platform", "sdm", "options", "result", "cli.run"])
def test_no_engine_without_a_machine(package: str) -> None:
    loaded = loaded_by(f"import lzero.{package}")
    assert "unicorn" not in loaded
    assert not {name for name in loaded if name.startswith(("lzero.cpu", "lzero.hypervisor"))}
