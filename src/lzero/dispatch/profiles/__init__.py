"""Profiles: which exit reasons a workload causes, how often, and in which order.

A profile is the input of the planner (`lzero.dispatch.plan`) and of the measurement
(`lzero.dispatch.measure`).  It is one of a few small named ones (`synthetic`, `recorded`), or read from a
Parquet file with a ``reason`` column, a CSV of counts, or a recording of this project's machine (`load`).
"""

from lzero.dispatch.profiles.load import load_profile
from lzero.dispatch.profiles.profile import Profile
from lzero.dispatch.profiles.recorded import RecordedProfile, recorded_profiles
from lzero.dispatch.profiles.synthetic import SYNTHETIC, SyntheticProfile

__all__ = ["SYNTHETIC", "Profile", "RecordedProfile", "SyntheticProfile", "load_profile", "recorded_profiles"]
