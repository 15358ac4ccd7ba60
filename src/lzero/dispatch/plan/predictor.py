"""Branch prediction by replay: how often a dispatcher's tests are mispredicted over a recorded order of exits.

``tage``
    A small TAGE (bimodal base, six tagged tables, history lengths 4 to 144), in C, built once with the host's compiler
    and cached.  The default where a compiler exists.
``gshare``
    Global history of 14 bits hashed with the branch, two-bit counters; in C, and in Python where there is no compiler.

Both see the handler that an exit reached as two history bits, since CPUs remember the path.  Neither is the predictor
of any real CPU: they rank trees, and measurement decides.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lzero.errors import UsageError
from lzero.native_build import NativeBuildError, build_library

__all__ = [
    "PREDICTORS",
    "ReplayPath",
    "ReplayRates",
    "default_predictor",
    "replay",
    "replay_gshare_in_python",
    "target_misprediction_rate",
]

PREDICTORS = {"gshare": 0, "tage": 1}
"""Predictor models by name, with the number the C side knows them by."""

WARM_UP = 0.25
"""Share of the sequence that trains the predictor before mispredictions count."""

_HASH = 2654435761
_GSHARE_BITS = 14
_HANDLER_BITS = 2


@dataclass(frozen=True)
class ReplayPath:
    """The conditional branches of one exit reason, in order: (number, taken); ``label`` stands for the handler."""

    branches: tuple[tuple[int, bool], ...]
    label: int


@dataclass(frozen=True)
class ReplayRates:
    """Mispredicted conditional branches per exit, and the model that counted them."""

    conditional: float
    predictor: str


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled replay, or None where no compiler is to be had."""
    source = Path(__file__).with_name("predictor.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    try:
        library = ctypes.CDLL(str(build_library("predictor", [source], digest)))
    except (NativeBuildError, OSError):
        return None
    library.lzero_replay.restype = ctypes.c_int64
    library.lzero_replay.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                     ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]  # fmt: skip
    return library


def default_predictor() -> str:
    """``tage`` where it can be built, else ``gshare``."""
    return "tage" if _library() is not None else "gshare"


def replay(paths: Mapping[int, ReplayPath], order: npt.NDArray[np.uint16], predictor: str = "tage") -> ReplayRates:
    """Replay ``order`` through the predictor model called ``predictor``.

    Without a compiler ``tage`` falls back to ``gshare``; the result names the model that was used.

    Raises
    ------
    UsageError
        When there is no such model.
    """
    if predictor not in PREDICTORS:
        raise UsageError(f"no predictor model {predictor!r}; there are {', '.join(PREDICTORS)}")
    library = _library()
    if library is None:
        return replay_gshare_in_python(paths, order)
    reasons = sorted(paths)
    row_of = np.zeros(1 << 16, dtype=np.int32)
    row_of[reasons] = np.arange(len(reasons), dtype=np.int32)
    rows = np.ascontiguousarray(row_of[order])
    lengths = [len(paths[reason].branches) for reason in reasons]
    start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    flat = [2 * number + taken for reason in reasons for number, taken in paths[reason].branches]
    branch = np.array(flat or [0], dtype=np.int32)
    label = np.array([paths[reason].label for reason in reasons], dtype=np.int32)
    warm = int(len(rows) * WARM_UP)
    arrays = (start.ctypes.data, branch.ctypes.data, label.ctypes.data)
    wrong = library.lzero_replay(PREDICTORS[predictor], rows.ctypes.data, len(rows), warm, *arrays)
    if wrong < 0:
        raise MemoryError("no memory for the predictor tables")
    return ReplayRates(wrong / (len(rows) - warm), predictor)


def replay_gshare_in_python(paths: Mapping[int, ReplayPath], order: npt.NDArray[np.uint16]) -> ReplayRates:
    """The gshare model without a compiler; same result as the C one."""
    mask = (1 << _GSHARE_BITS) - 1
    counters = bytearray(mask + 1)
    prepared: dict[int, tuple[list[tuple[int, int]], int]] = {}
    for reason, path in paths.items():
        branches = [(((number * _HASH) & 0xFFFFFFFF) >> 16, int(taken)) for number, taken in path.branches]
        hashed = ((path.label * _HASH) & 0xFFFFFFFF) >> 20
        # The C side shifts in bit 20 first, then bit 21.
        prepared[reason] = (branches, (hashed & 1) << 1 | hashed >> 1 & 1)
    history = 0
    wrong = 0
    warm = int(len(order) * WARM_UP)
    for position, reason in enumerate(order.tolist()):
        branches, label = prepared[reason]
        for hashed, taken in branches:
            slot = (hashed ^ history) & mask
            counter = counters[slot]
            if (counter >= 2) != taken and position >= warm:
                wrong += 1
            if taken:
                counters[slot] = min(counter + 1, 3)
            else:
                counters[slot] = max(counter - 1, 0)
            history = (history << 1 | taken) & 0xFFFFFFFF
        history = (history << _HANDLER_BITS | label) & 0xFFFFFFFF
    return ReplayRates(wrong / (len(order) - warm), "gshare")


def target_misprediction_rate(order: npt.NDArray[np.uint16]) -> float:
    """How often a plain indirect branch's target is mispredicted, guessed as the last one after the same two exits."""
    warm = int(len(order) * WARM_UP)
    last: dict[tuple[int, int], int] = {}
    before = (-1, -1)
    wrong = 0
    for position, reason in enumerate(order.tolist()):
        wrong += last.get(before) != reason and position >= warm
        last[before] = reason
        before = (before[1], reason)
    return wrong / (len(order) - warm)
