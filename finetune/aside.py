"""Prompts set aside from training: how far their rewards have moved since the first scoring, and which scoring was the best."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from finetune.checkpoint import Progress
from finetune.hands import Hands
from finetune.recipe import AlignConfig


def score_aside(hands: Hands, config: AlignConfig, progress: Progress, rounds: int) -> dict[str, float]:
    """`aside/...` means; takes note in `progress`, and has the weights kept, where the total is the best. All ranks call it."""
    said = hands.score_aside(rounds)
    if said is None:
        return {}
    total = _total(said.values, config, progress)
    if progress.best_total is None or total > progress.best_total:
        progress.best_total, progress.best_round, progress.without_better = total, rounds, 0
        hands.keep_best()
    else:
        progress.without_better += 1
    return {"aside_total": total, **{f"aside/{name}": value for name, value in said.means.items()}}


def _total(values: Mapping[str, Tensor], config: AlignConfig, progress: Progress) -> float:
    """Weighted sum of how far each reward's mean has moved since the first scoring, in its deviations there."""
    total = 0.0
    for name, route in config.rubric.routes().items():
        known = values[name][~values[name].isnan()]
        mean = float(known.mean()) if len(known) else math.nan
        if name not in progress.baseline:
            spread = float(known.std()) if len(known) > 1 else 0.0
            progress.baseline[name] = [mean, spread]
        before, spread = progress.baseline[name]
        moved = (mean - before) / max(spread, 1e-6)
        total += route.weight * moved if math.isfinite(moved) else 0.0
    return total
