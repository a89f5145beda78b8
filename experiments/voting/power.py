"""How many votes would settle a comparison."""

from __future__ import annotations

import math

from finetune.gsb.statistics import Z, gsb_error

Z_POWER = 0.8416212335729143  # of 80 %


def votes_to_settle(good: int, same: int, bad: int) -> int | None:
    """Further votes with which the 95 % interval of a GSB of the present size misses 0 in 80 % of surveys.

    n = (z_0.975 + z_0.8)^2 (pG + pB - GSB^2) / GSB^2 for independent votes; 0 where there are as many
    already, None where GSB is 0 or nobody voted.
    """
    n = good + same + bad
    if not n or good == bad:
        return None
    gsb = (good - bad) / n
    variance = gsb_error(good, same, bad) ** 2 * n
    if not variance:  # all votes are equal: one pseudo-vote each way, as for the interval
        variance = gsb_error(good + 1, same, bad + 1) ** 2 * (n + 2)
    return max(0, math.ceil((Z + Z_POWER) ** 2 * variance / gsb**2) - n)
