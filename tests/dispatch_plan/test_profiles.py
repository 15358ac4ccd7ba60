"""Profiles: the shipped ones, and files good and bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars
import pytest

from lzero.dispatch.handlers import HANDLERS
from lzero.dispatch.profiles import SYNTHETIC, Profile, load_profile, recorded_profiles
from lzero.errors import PlanError, UsageError
from lzero.sdm.exit_reasons import ExitReason


def test_shipped_profiles_repeat_and_state_their_origin() -> None:
    for name, synthetic in SYNTHETIC.items():
        profile = load_profile(name)
        assert profile.order is not None
        assert np.array_equal(profile.order, synthetic.make().order)
        assert profile.origin.startswith("synthetic, seed 1, 65536 exits: ")
        assert sum(profile.frequencies().values()) == pytest.approx(1.0)


def test_recorded_profiles_ship_with_their_command() -> None:
    for name, recorded in recorded_profiles().items():
        profile = load_profile(name)
        assert profile.order is not None
        assert len(profile.order) >= 32768
        assert not profile.independent
        assert recorded.command.startswith("lzero run ")
        assert set(profile.counts) <= HANDLERS.keys()


def test_nested_kvm_without_shadowing_exits_mostly_for_vmread() -> None:
    frequencies = load_profile("kvm-nested").frequencies()
    assert max(frequencies, key=lambda reason: frequencies[reason]) == ExitReason.VMREAD


def test_excerpt_of_a_mixture_sees_every_part() -> None:
    mixture = Profile.mixture([load_profile("periodic"), load_profile("nested")])
    assert 23 not in mixture.sequence(32768)
    shares = np.bincount(mixture.excerpt(32768), minlength=64) / 32768
    assert shares[23] == pytest.approx(mixture.frequencies()[23], abs=0.02)
    assert len(load_profile("bursty").excerpt(1024)) == 1024


def test_bursty_profile_keeps_the_histogram_of_the_skewed_one() -> None:
    bursty, skewed = load_profile("bursty").frequencies(), load_profile("skewed").frequencies()
    assert bursty[32] == pytest.approx(skewed[32], abs=0.05)


def test_counts_from_csv_by_number_or_name(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("reason,count\n48, 10\nMSR_WRITE,30\nEXIT_REASON_HLT,5\n")
    profile = load_profile(path)
    assert profile.counts == {48: 10, 32: 30, 12: 5}
    assert profile.order is None
    assert "independence assumed" in profile.origin
    assert set(np.unique(profile.sequence(1000)).tolist()) == {48, 32, 12}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("reason,count\n", "holds no exits"),
        ("48,10,3\n", r"counts.csv:1: 3 columns"),
        ("48,many\n", r"counts.csv:1: the count 'many'"),
        ("65536,1\n", r"counts.csv:1: exit reason 65536 does not fit 16 bits"),
        ("MSR_WRITTEN,1\n", r"counts.csv:1: unknown exit reason 'MSR_WRITTEN'"),
        ("48,0\n", "holds no exits"),
    ],
)
def test_bad_csv_is_one_clear_error(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(text)
    with pytest.raises(PlanError, match=complaint):
        load_profile(path)


def test_parquet_keeps_what_reaches_the_table_in_order(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    polars.DataFrame(
        {
            "seq": [3, 1, 2, 4, 5],
            "reason": [30, 10, 12, 48, 33],
            "handled_by": [1, 1, 2, 1, 1],
            "level": [1, 1, 2, 2, 1],
            "failed_entry": [False, False, False, False, True],
        },
        schema_overrides={"reason": polars.UInt16},
    ).write_parquet(path)
    profile = load_profile(path)
    assert profile.order is not None
    assert profile.order.tolist() == [10, 30, 48]
    assert not profile.independent
    second_level = load_profile(path, level=2)
    assert second_level.order is not None
    assert second_level.order.tolist() == [48]
    with pytest.raises(PlanError, match="no such column"):
        load_profile(path, vcpu=0)


def test_bad_parquet_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(PlanError, match=r"bad\.parquet: cannot be read as Parquet"):
        load_profile(path)
    polars.DataFrame({"cause": [1]}).write_parquet(path)
    with pytest.raises(PlanError, match="no column 'reason'"):
        load_profile(path)
    polars.DataFrame({"reason": []}, schema={"reason": polars.UInt16}).write_parquet(path)
    with pytest.raises(PlanError, match="no exits left"):
        load_profile(path)
    polars.DataFrame({"reason": [48, 70000]}).write_parquet(path)
    with pytest.raises(PlanError, match="row 1 has exit reason 70000"):
        load_profile(path)
    polars.DataFrame({"reason": [48, None]}).write_parquet(path)
    with pytest.raises(PlanError, match="1 rows have no reason"):
        load_profile(path)
    polars.DataFrame({"reason": ["HLT"]}).write_parquet(path)
    with pytest.raises(PlanError, match="cannot be read"):
        load_profile(path)


def test_empty_directory_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="without Parquet parts"):
        load_profile(tmp_path)
    with pytest.raises(UsageError, match="no profile skewd: neither a file nor one of skewed"):
        load_profile("skewd")


def test_profile_refuses_reasons_outside_16_bits_and_negative_counts() -> None:
    with pytest.raises(PlanError, match="16-bit"):
        Profile("p", "here", {1 << 31 | 33: 1})
    with pytest.raises(PlanError, match="negative count"):
        Profile("p", "here", {48: -1})
