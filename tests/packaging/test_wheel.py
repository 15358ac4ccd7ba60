"""The wheel installs into a fresh environment and works there: nothing of the source tree is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import lzero

ROOT = Path(__file__).resolve().parents[2]

# A library beside every folder of C sources.
NATIVE = {f"{path.parent.relative_to(ROOT / 'src')}/_native.so" for path in (ROOT / "src/lzero").rglob("native")}

# Building needs no network: setuptools comes from the environment the suite runs in.
BUILD = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]


def run(*command: str | Path, path: str | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path is not None:
        environment["PATH"] = path
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, env=environment, cwd="/"
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def build(into: Path, path: str | None = None) -> Path:
    # From a copy: building writes into the tree it builds from.
    source = into / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, *BUILD, "--wheel-dir", into, source, path=path)
    (wheel,) = into.glob("lzero-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the programs of a fresh environment with the wheel, and the suite's own dependencies beside it."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = next((environment / "lib").glob("python*")) / "site-packages"
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # addsitedir would follow the .pth file of an editable lzero; a plain line adds the directory and no more.
    (site / "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    return environment / "bin"


def test_wheel_serves_every_python_of_this_platform(wheel: Path) -> None:
    assert wheel.name.startswith(f"lzero-{lzero.__version__}-py3-none-")
    assert not wheel.name.endswith("-any.whl")


def test_wheel_holds_licence_types_guests_and_native_libraries(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("lzero/py.typed", "lzero/guests/hello.elf", "lzero/guests/manifest.toml"):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert NATIVE <= set(names)
    assert {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/lzero").rglob("native/*.c")} <= set(names)
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]


def test_wheel_without_a_compiler_still_builds(tmp_path: Path) -> None:
    wheel = build(tmp_path, path=str(tmp_path / "nothing"))
    assert not NATIVE & set(zipfile.ZipFile(wheel).namelist())


def test_installed_command_is_that_of_the_wheel(scripts: Path) -> None:
    assert run(scripts / "lzero", "--version").stdout == f"lzero {lzero.__version__}\n"
    where = run(scripts / "python", "-c", "import lzero; print(lzero.__file__)").stdout
    assert where.startswith(str(scripts.parent))


@pytest.mark.parametrize(
    ("program", "place"),
    [
        ("from lzero.trace.readers.binary.native import library; print(library()._name)", "trace/readers"),
        ("from lzero.cpu.engine.library import load; print(load().functions._name)", "cpu/engine"),
    ],
)
def test_installed_library_is_that_of_the_wheel(scripts: Path, program: str, place: str) -> None:
    # Built for these sources, so it is not built again: here without a compiler, and with an empty cache.
    cache = f"import os; os.environ['XDG_CACHE_HOME'] = {str(scripts.parent / 'empty')!r}; "
    where = run(scripts / "python", "-c", cache + program, path=str(scripts)).stdout
    assert where.startswith(str(scripts.parent))
    assert where.rstrip().endswith(f"lzero/{place}/_native.so")


def test_installed_command_runs_the_bundled_guest(scripts: Path) -> None:
    image = run(
        scripts / "python",
        "-c",
        "from importlib.resources import files; print(files('lzero.guests') / 'hello.elf')",
    ).stdout.strip()
    # Debug-exit value 0, which is how the bundled guests say that all went well.
    done = run(scripts / "lzero", "run", image, status=1)
    assert "VM-EXIT" in done.stderr
