"""The profile itself: counts per basic exit reason, and the recorded order where there is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lzero.errors import PlanError

__all__ = ["REASON_LIMIT", "Profile", "ReasonArray"]

REASON_LIMIT = 1 << 16
"""Basic exit reasons are 16 bits wide: SDM Vol. 3, 'Basic VM-Exit Information', bits 15:0."""

EXCERPT_WINDOWS = 16
"""Number of places of a long recording that an excerpt is taken from."""

ReasonArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Profile:
    """How often each exit reason occurs in one workload, and in which order if that is known.

    Attributes
    ----------
    name:
        Short name, for tables.
    origin:
        Where the numbers come from, in one sentence.
    counts:
        Number of exits per basic exit reason (0..65535); only reasons that occur.
    order:
        The reasons in recorded order, or None when only counts are known.
    independent:
        True when successive exits are (by construction) or must be (counts only) taken as independent.
    recorded:
        When and on which CPU the profile was taken, free text; empty for synthetic ones.
    """

    name: str
    origin: str
    counts: Mapping[int, int]
    order: ReasonArray | None = None
    independent: bool = True
    recorded: str = ""
    _total: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        total = 0
        for reason, count in self.counts.items():
            if not 0 <= reason < REASON_LIMIT:
                raise PlanError(
                    f"profile {self.name}: exit reason {reason} does not fit the 16-bit basic exit reason; "
                    "pass bits 15:0 of the exit-reason field only"
                )
            if count < 0:
                raise PlanError(f"profile {self.name}: reason {reason} has the negative count {count}")
            total += count
        if total == 0:
            raise PlanError(f"profile {self.name} holds no exits; record a workload that exits, or check the filter")
        object.__setattr__(self, "_total", total)

    @classmethod
    def from_order(
        cls,
        name: str,
        origin: str,
        order: Iterable[int] | ReasonArray,
        *,
        independent: bool = False,
        recorded: str = "",
    ) -> Profile:
        """Build a profile from reasons in the order in which they occurred.

        Raises
        ------
        PlanError
            When there are none, or one does not fit 16 bits.
        """
        values = np.asarray(order if isinstance(order, np.ndarray) else list(order), dtype=np.int64)
        if values.size and (int(values.min()) < 0 or int(values.max()) >= REASON_LIMIT):
            row = int(np.flatnonzero((values < 0) | (values >= REASON_LIMIT))[0])
            raise PlanError(
                f"profile {name}: row {row} has exit reason {int(values[row])}, outside the 16-bit basic exit reason; "
                "pass bits 15:0 of the exit-reason field only"
            )
        reasons, numbers = np.unique(values, return_counts=True)
        counts = {int(reason): int(number) for reason, number in zip(reasons, numbers, strict=True)}
        return cls(name, origin, counts, values.astype(np.uint16), independent, recorded)

    @classmethod
    def mixture(cls, profiles: Sequence[Profile]) -> Profile:
        """Several workloads as one, each with the same weight whatever its length.

        The order is kept, one workload after the other, when all have one.
        """
        longest = max(profile.total for profile in profiles)
        counts: dict[int, int] = {}
        for profile in profiles:
            for reason, count in profile.counts.items():
                counts[reason] = counts.get(reason, 0) + max(round(count * longest / profile.total), 1)
        orders = [profile.order for profile in profiles]
        known = [order for order in orders if order is not None]
        share = max((len(order) for order in known), default=0)
        order = np.concatenate([np.resize(order, share) for order in known]) if len(known) == len(orders) else None
        independent = order is None or all(profile.independent for profile in profiles)
        name = "+".join(profile.name for profile in profiles)
        origin = "equal mixture of " + "; ".join(f"{p.name}: {p.origin}" for p in profiles)
        return cls(name, origin, counts, order, independent)

    @property
    def total(self) -> int:
        """Number of exits the profile stands for."""
        return self._total

    def frequencies(self) -> dict[int, float]:
        """Share of each reason, summing to 1."""
        return {reason: count / self._total for reason, count in sorted(self.counts.items()) if count}

    def sequence(self, length: int, seed: int = 1) -> ReasonArray:
        """Return ``length`` reasons to replay.

        The recorded order, repeated when it is shorter; or, where only counts are known, independent
        draws from the counts with the seeded generator (the profile says so in ``independent``).
        """
        if length <= 0:
            raise PlanError(f"a sequence of {length} exits cannot be replayed")
        if self.order is not None:
            return np.resize(self.order, length)
        reasons = np.array(sorted(self.counts), dtype=np.uint16)
        weights = np.array([self.counts[int(reason)] for reason in reasons], dtype=np.float64)
        generator = np.random.default_rng(seed)
        return generator.choice(reasons, size=length, p=weights / weights.sum())

    def excerpt(self, length: int) -> ReasonArray:
        """Return ``length`` exits that stand for all of a longer recording: windows evenly spread over it.

        A recording has phases, and so has a mixture; its beginning alone would stand for the first of them.
        """
        if self.order is None or len(self.order) <= length:
            return self.sequence(length)
        window = length // EXCERPT_WINDOWS
        starts = np.linspace(0, len(self.order) - window, EXCERPT_WINDOWS).astype(np.int64)
        return np.concatenate([self.order[start : start + window] for start in starts])
