"""Intervals, mitigations and the description of the host: what needs no compiler."""

from __future__ import annotations

import numpy as np
import pytest

from lzero.dispatch.measure.host import describe_host
from lzero.dispatch.measure.mitigations import MITIGATIONS, mitigation_named
from lzero.dispatch.measure.run import Effort
from lzero.dispatch.measure.stats import difference_interval, ratio_interval
from lzero.errors import ToolError, UsageError


def _samples(level: float, spread: float, seed: int) -> np.ndarray:
    return level + np.random.default_rng(seed).normal(0, spread, (12, 15))


def test_paired_ratio_cancels_drift_that_both_share() -> None:
    drift = np.random.default_rng(3).uniform(0.5, 2.0, (12, 15))
    reference = _samples(30, 0.1, 1) * drift
    candidate = _samples(24, 0.1, 2) * drift
    ratio = ratio_interval(candidate, reference)
    assert ratio.low < 0.8 < ratio.high
    assert ratio.high - ratio.low < 0.01


def test_interval_covers_one_for_equal_candidates_and_not_for_different_ones() -> None:
    same = ratio_interval(_samples(30, 1, 1), _samples(30, 1, 2))
    assert same.low <= 1.0 <= same.high
    assert ratio_interval(_samples(27, 1, 1), _samples(30, 1, 2)).high < 1.0


def test_a_few_wild_rounds_do_not_move_the_estimate() -> None:
    candidate = _samples(24, 0.1, 1)
    candidate[:, 0] = 400
    assert difference_interval(candidate, _samples(20, 0.1, 2)).value == pytest.approx(4, abs=0.2)


def test_layouts_that_differ_widen_the_interval() -> None:
    reference = _samples(30, 0.1, 2)
    layouts = np.repeat([[20.0], [24.0], [22.0], [26.0]], 3, axis=0)
    one = ratio_interval(_samples(23, 0.1, 1), reference)
    several = ratio_interval(layouts + _samples(0, 0.1, 1), reference)
    assert several.high - several.low > 10 * (one.high - one.low)


def test_patching_replaces_each_thunk_site_by_as_many_bytes() -> None:
    rewrite = MITIGATIONS["patched"].rewrite
    assert rewrite is not None
    text = "\tjmp\t__x86_indirect_thunk_rax\n\tcall\t__x86_indirect_thunk_r11\t# TAILCALL\n\tcall\thandle_cr\n"
    lines = rewrite(text).split("\n\t")
    assert "jmp *%rax" in lines[0]
    assert sum("int3" in line for line in lines) == 3
    assert sum("nop" in line for line in lines) == 2
    assert "handle_cr" in rewrite(text)
    with pytest.raises(ToolError, match="cannot be patched"):
        rewrite("\tjne\t__x86_indirect_thunk_rax\n")


def test_unknown_names_and_empty_efforts_are_refused() -> None:
    with pytest.raises(UsageError, match="no mitigation 'retpolin'"):
        mitigation_named("retpolin")
    with pytest.raises(UsageError, match="at least 1"):
        Effort(layouts=0)
    with pytest.raises(UsageError, match="no mode hot"):
        Effort(rounds={"hot": 1})


def test_host_description_names_the_cpu() -> None:
    host = describe_host()
    assert host.cpus >= 1
    assert host.lines()[0].startswith("CPU: ")
