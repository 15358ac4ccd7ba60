"""pytest plugin: run a guest in a test and assert on its exits.

::

    @pytest.mark.lzero(image="my_hypervisor.elf", args="cpuid")
    def test_a_cpuid_exit_stays_cheap(exits):
        assert exits.per("CPUID", level=2).vmreads <= 10

``pytest --lzero`` runs such tests; without the option they are skipped. A failing one shows the causes of its exits and
what changed since the trace recorded when it last passed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lzero.testing.exits import Exits
    from lzero.testing.guest import GuestMachine

__all__ = [
    "exits",
    "machine",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_report_header",
    "pytest_runtest_makereport",
]

MARKER = "lzero"
_MACHINE: pytest.StashKey[GuestMachine] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--lzero`` and ``--lzero-traces``."""
    group = parser.getgroup("lzero", "guests under lzero")
    group.addoption("--lzero", action="store_true", help="run the tests marked lzero, which run guest images")
    group.addoption(
        "--lzero-traces",
        metavar="DIR",
        default=None,
        help="keep the trace of each test's last passing run here (default: in pytest's cache)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker."""
    config.addinivalue_line(
        "markers",
        "lzero(image, **options): run this guest image; the options are those of lzero.MachineOptions.of",
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say where the traces are."""
    return f"lzero: traces of passing tests in {_traces(config)}" if config.getoption("--lzero") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the guests' tests unless they are asked for."""
    if config.getoption("--lzero"):
        return
    skip = pytest.mark.skip(reason="runs a guest: pytest --lzero")
    for item in items:
        if item.get_closest_marker(MARKER) is not None:
            item.add_marker(skip)


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> GuestMachine:
    """The machine of the test's marker; ``machine.run()`` runs it."""
    from lzero.testing.guest import GuestMachine

    marker = request.node.get_closest_marker(MARKER)
    if marker is None:
        pytest.fail("the fixture needs a guest: @pytest.mark.lzero(image=...)", pytrace=False)
    choices = dict(marker.kwargs)
    image = choices.pop("image", marker.args[0] if marker.args else None)
    if image is None:
        pytest.fail("the marker names no guest: @pytest.mark.lzero(image=...)", pytrace=False)
    made = GuestMachine(image, choices, base=request.path.parent, traces=tmp_path)
    request.node.stash[_MACHINE] = made
    return made


@pytest.fixture
def exits(machine: GuestMachine) -> Exits:
    """The exits of one run of the test's machine, as its marker has it."""
    return machine.run().exits


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Explain a failing guest's exits; keep the trace of a passing one to compare with."""
    report = yield
    made = item.stash.get(_MACHINE, None)
    if made is None or not made.runs:
        return report
    if report.when == "call" and report.passed:
        _keep(item, made)
    elif report.failed:
        report.sections += _explanation(item, made)
    if report.when == "call":
        # On the item: the report that JUnit XML is written from is the one of the teardown.
        item.user_properties += _figures(made)
    return report


def _traces(config: pytest.Config) -> Path:
    chosen = config.getoption("--lzero-traces")
    if chosen is not None:
        return Path(chosen)
    # pytest's own cache: its public interface, where "d" directories are made for plugins.
    cache: pytest.Cache | None = getattr(config, "cache", None)  # there is none with -p no:cacheprovider
    return cache.mkdir("lzero") if cache is not None else config.rootpath / ".lzero"


def _kept(item: pytest.Item) -> Path:
    # The name tells a person which test it is, the digest tells two tests of one name apart.
    digest = hashlib.sha256(item.nodeid.encode()).hexdigest()[:12]
    name = "".join(char if char.isalnum() or char in "-_" else "_" for char in item.name)[:80]
    return _traces(item.config) / f"{name}-{digest}.parquet"


def _keep(item: pytest.Item, made: GuestMachine) -> None:
    source = made.last.trace
    if not source.exists():
        return
    target = _kept(item)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".partial")
    shutil.copyfile(source, unfinished)
    unfinished.replace(target)


def _explanation(item: pytest.Item, made: GuestMachine) -> list[tuple[str, str]]:
    from lzero.errors import LzeroError

    run = made.last
    sections = [("lzero exits", run.exits.table())]
    before = _kept(item)
    if before.exists():
        try:
            changed = _difference(before, run.trace)
        except LzeroError as error:
            changed = f"cannot compare with {before}: {error}"
        sections.append(("lzero exits against those of the last passing run", changed))
    if run.console:
        sections.append(("lzero guest console", run.text))
    if run.result.message:
        sections.append((f"lzero guest ended: {run.result.ended}", run.result.message))
    return sections


def _difference(before: Path, after: Path) -> str:
    from lzero.trace.diff import compare, diff_table, profile_rows
    from lzero.trace.frames import frames

    return diff_table(compare(*(profile_rows(path.name, partial(frames, str(path))) for path in (before, after))))


def _figures(made: GuestMachine) -> list[tuple[str, Any]]:
    """Properties of the test in JUnit XML: the number of exits of each reason of its last run."""
    return [
        (f"lzero.L{level}.{reason}", count)
        for level, reasons in made.last.result.exits_by_reason.items()
        for reason, count in reasons.items()
    ]
