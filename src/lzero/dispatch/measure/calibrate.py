"""Prices of the cost model, measured on this host with the benchmark itself.

Small dispatchers made for it are timed on sequences that isolate one effect each: one test on a fair coin for a
misprediction, sixteen tests that never hold before that coin for the price of a comparison, the handler table for the
indirect call.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lzero.dispatch.measure.build import DIRECT, build_program, write_order
from lzero.dispatch.measure.host import describe_host
from lzero.dispatch.measure.mitigations import Mitigation
from lzero.dispatch.measure.run import Effort, measure_programs
from lzero.dispatch.plan.model import CostModel
from lzero.dispatch.profiles.profile import ReasonArray
from lzero.dispatch.strategies import STRATEGIES, Strategy
from lzero.dispatch.toolchain import Compiler
from lzero.dispatch.tree import Eq, Leaf, Less, Node, Range
from lzero.native_build import cache_directory

__all__ = ["calibrate", "load_calibration"]

_LENGTH = 65536
_TESTS = 16
_ONE, _TWO = 48, 32
_HIT, _OTHER = Leaf("handle_ept_misconfig"), Leaf("kvm_emulate_wrmsr")
_BIASES = (0.1, 0.2, 0.3)
"""Probabilities at which the ideal guess and the two-bit counter differ most."""
_SPREAD = (48, 32, 12, 1, 30, 10, 31, 52)
_EFFORT = Effort(layouts=2, processes=2, rounds={"plain": 9})
FORMAT_VERSION = 5
"""Part of the cached file's name: raised when calibration changes."""


_COIN = Eq(_ONE, _HIT, _OTHER)


def _repeat(test: Callable[[int, Node], Node]) -> Node:
    """Tests that never hold, then the coin: after a misprediction their time shows, before a sure call it hides."""
    node: Node = _COIN
    for number in range(_TESTS, 0, -1):
        node = test(number, node)
    return node


def _programs() -> list[Strategy]:
    trees = {
        "compare": _repeat(lambda n, rest: Eq(100 + n, _OTHER, rest)),
        "split": _repeat(lambda n, rest: Less(n, _OTHER, rest)),
        "ranges": _repeat(lambda n, rest: Range(100 + 4 * n, 102 + 4 * n, _OTHER, rest)),
        "coin": _COIN,
    }
    return [Strategy(f"calibrate_{name}", "", "", tree) for name, tree in trees.items()] + [STRATEGIES["table"]]


def _orders() -> dict[str, ReasonArray]:
    generator = np.random.default_rng(11)
    pair = np.array([_ONE, _TWO], dtype=np.uint16)
    return {
        "constant": np.full(_LENGTH, _ONE, dtype=np.uint16),
        "alternating": np.resize(np.repeat(pair, 2), _LENGTH),
        "coin": generator.choice(pair, _LENGTH),
        **{f"biased {p}": generator.choice(pair, _LENGTH, p=[p, 1 - p]) for p in _BIASES},
        "spread": generator.choice(np.array(_SPREAD, dtype=np.uint16), _LENGTH),
    }


def calibrate(
    compiler: Compiler, mitigation: Mitigation, progress: Callable[[str], None] = lambda _text: None
) -> CostModel:
    """Measure the prices under one compiler and mitigation (a few seconds).

    Raises
    ------
    ToolError
        When the programs cannot be built or run.
    """
    with tempfile.TemporaryDirectory(prefix="lzero-calibrate-") as scratch:
        directory = Path(scratch)
        progress("calibration: building")
        build = build_program(compiler, mitigation, _programs(), directory, layouts=_EFFORT.layouts)
        ticks: dict[tuple[str, str], float] = {}
        for name, order in _orders().items():
            progress(f"calibration: {name}")
            path = write_order(order, directory / f"{name}.bin")
            measured = measure_programs(build.programs, path, _EFFORT, exits=len(order))
            base = measured.samples["plain", DIRECT]
            for (_, candidate), samples in measured.samples.items():
                # The median resists the interruptions that only ever add.
                ticks[candidate.removeprefix("calibrate_"), name] = float(np.median(samples - base))
    coin = ticks["coin", "coin"]
    comparison = max((ticks["compare", "coin"] - coin) / _TESTS, 0.05)
    spread = max(ticks["table", "spread"] - ticks["table", "constant"], 0.0)
    rate = 1 - 1 / len(_SPREAD)
    misprediction = max((coin - ticks["coin", "alternating"]) / 0.5, 0.0)
    return CostModel(
        comparison=comparison,
        taken=max((ticks["split", "coin"] - coin) / _TESTS - comparison, 0.0),
        range_extra=max((ticks["ranges", "coin"] - coin) / _TESTS - comparison, 0.0),
        misprediction=misprediction,
        counter_share=_counter_share(ticks, misprediction),
        indirect=max(ticks["table", "constant"], 0.0),
        indirect_misprediction=spread / rate if spread > 2.0 else 0.0,
        mitigation=mitigation.name,
        source=f"calibrated on {describe_host().short()}, {compiler.version}",
    )


def _counter_share(ticks: dict[tuple[str, str], float], misprediction: float) -> float:
    """How far biased independent outcomes are mispredicted as by a two-bit counter: 0 for the ideal guess, 1 for it."""
    if misprediction < 1.0:
        return 0.0
    constant = ticks["coin", "constant"]
    # Two handlers in turn cost a little more than one alone, also when predicted; in proportion to how often they turn.
    variety = ticks["coin", "alternating"] - constant
    shares = []
    for p in _BIASES:
        ideal, product = min(p, 1 - p), p * (1 - p)
        missed = (ticks["coin", f"biased {p}"] - constant - 4 * product * variety) / misprediction
        shares.append((missed - ideal) / (product / (1 - 2 * product) - ideal))
    return float(np.clip(np.mean(shares), 0.0, 1.0))


def _cache_path(compiler: Compiler, mitigation: Mitigation) -> Path:
    host = describe_host()
    key = f"{FORMAT_VERSION} {host.short()} {compiler.version} {mitigation.name}"
    return cache_directory() / f"prices-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def load_calibration(
    compiler: Compiler,
    mitigation: Mitigation,
    *,
    again: bool = False,
    progress: Callable[[str], None] = lambda _text: None,
) -> CostModel:
    """The prices of this host, from the cache when they were measured before."""
    path = _cache_path(compiler, mitigation)
    if path.exists() and not again:
        try:
            return CostModel(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            # A damaged cache is measured anew.
            pass
    model = calibrate(compiler, mitigation, progress)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(asdict(model)), encoding="utf-8")
        scratch.replace(path)
    except OSError:
        # A cache that cannot be written only costs time.
        pass
    return model
