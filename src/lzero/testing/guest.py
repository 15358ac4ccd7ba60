"""The guest of a test: a machine made anew for every run, its console and its exits."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lzero.errors import UsageError
from lzero.options import MachineOptions
from lzero.result import RunResult
from lzero.testing.exits import Exits

__all__ = ["GuestMachine", "GuestRun"]

DEFAULT_TIMEOUT = "host:60"
"""A guest that never ends must not take the whole test session with it."""


@dataclass(frozen=True, slots=True)
class GuestRun:
    """What came of one run.

    Parameters
    ----------
    result:
        How it ended.
    console:
        Bytes that the guest wrote to its serial port.
    trace:
        Recorded exits, a Parquet file.
    """

    result: RunResult
    console: bytes
    trace: Path

    @property
    def exits(self) -> Exits:
        """The exits, to be asked for counts and costs."""
        return Exits(self.result.aggregates)

    @property
    def text(self) -> str:
        """The console as text; bytes that are no UTF-8 are shown as escapes."""
        return self.console.decode("utf-8", errors="backslashreplace")


class GuestMachine:
    """The fixture ``machine``: runs the image of the test's marker, as often as the test likes.

    Parameters
    ----------
    image:
        Path, or ``guest:NAME``.
    choices:
        Further options, as for :meth:`lzero.MachineOptions.of`. Without ``timeout``, a run ends after a minute of the
        host's time.
    base:
        Directory against which relative paths are taken.
    traces:
        Directory for the recorded exits.
    """

    def __init__(self, image: str | Path, choices: dict[str, Any], base: Path, traces: Path) -> None:
        self._image = image
        self._choices = {"timeout": DEFAULT_TIMEOUT, **choices}
        self._base = base
        self._traces = traces
        self.runs: list[GuestRun] = []

    def run(self, *args: str, stdin: bytes = b"", **changes: Any) -> GuestRun:
        """Run the guest from power-on to its end.

        Parameters
        ----------
        args:
            Arguments of the guest; without any, those of the marker.
        stdin:
            What its serial port receives.
        changes:
            Options that differ from those of the marker.

        Raises
        ------
        LzeroError
            The image or the options cannot be used. How the guest ends is no error: it is in the result.
        """
        from lzero.machine import Machine

        choices = {**self._choices, **changes}
        words = args or choices.pop("args", ())
        choices.pop("args", None)
        console = io.BytesIO()
        trace = self._traces / f"run{len(self.runs)}.parquet"
        options = MachineOptions.of(
            self._path(self._image),
            words.split() if isinstance(words, str) else words,
            **{**self._local(choices), "record": trace, "console": console, "stdin": io.BytesIO(stdin)},
        )
        run = GuestRun(Machine(options=options).run(), console.getvalue(), trace)
        self.runs.append(run)
        return run

    @property
    def last(self) -> GuestRun:
        """The latest run. Raises :class:`UsageError` when the test has run nothing yet."""
        if not self.runs:
            raise UsageError("the test has not run its machine yet: call machine.run()")
        return self.runs[-1]

    def _path(self, image: str | Path) -> str | Path:
        return image if str(image).startswith("guest:") else self._base / image

    def _local(self, choices: dict[str, Any]) -> dict[str, Any]:
        """Paths in the marker are the test's: relative to its folder, wherever pytest was started."""
        local = dict(choices)
        if local.get("initrd") is not None:
            local["initrd"] = self._base / local["initrd"]
        if "modules" in local:
            local["modules"] = [str(self._base / module) for module in local["modules"]]
        if local.get("shadow_vmcs", "off") not in ("off", "default"):
            local["shadow_vmcs"] = str(self._base / local["shadow_vmcs"])
        return local
