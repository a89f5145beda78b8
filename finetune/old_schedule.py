"""How fast the old policy follows the trained one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OldSchedule:
    """How much of `old` is kept at its n-th update: min(slope (n - flat_steps), limit), 0 before (alignment.md 2.5).

    NVlabs' types: 0 = (0, 0, 0), a copy every time; 1 = (0, 0.001, 0.5); 2 = (75, 0.0075, 0.999). Raises ValueError on a limit
    outside [0, 1) or negative numbers.
    """

    flat_steps: int = 0
    slope: float = 0.001
    limit: float = 0.5

    def __post_init__(self) -> None:
        if self.flat_steps < 0 or self.slope < 0 or not 0 <= self.limit < 1:
            raise ValueError(f"old: flat_steps and slope must not be negative and limit be in [0, 1), got {self}")

    def decay(self, update: int) -> float:
        """Of update 0, 1, 2, ..."""
        return min(self.slope * max(update - self.flat_steps, 0), self.limit)


COPY = OldSchedule(slope=0.0, limit=0.0)
RAMP = OldSchedule(flat_steps=0, slope=0.001, limit=0.5)
LATE_RAMP = OldSchedule(flat_steps=75, slope=0.0075, limit=0.999)
