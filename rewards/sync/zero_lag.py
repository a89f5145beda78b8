"""The sync reward: correlation of both embeddings at lag 0, relative to other lags.

Sync-C does not change when the whole sound is moved, so it cannot teach timing; this statistic can, and is 0
for a face that does not move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_LAG = 15
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class ZeroLag:
    """`value` is the reward, about -0.5 to 1.5.

    Lag k pairs picture i with sound i + k, in frames of 40 ms.
    """

    value: float
    rho: np.ndarray  # float64 [2 max_lag + 1], lags -max_lag..max_lag
    rho_zero: float
    expected_lag: float  # mean |k| under the softmax of rho
    best_lag: int  # positive: the sound that fits comes later than the picture


def zero_lag(
    v: np.ndarray, a: np.ndarray, max_lag: int = MAX_LAG, temperature: float = 0.1, eps: float = 0.1
) -> ZeroLag:
    """rho_0 + 0.5 (1 - E_p|k| / mean|k|), p = softmax(rho / temperature), of embeddings v and a [n, D].

    Embeddings are scaled to length 1, then centred over the clip. rho_k is the sum of v_i . a_(i+k) over the
    overlap, always over the full n, over sqrt(mean |v|^2 mean |a|^2) + eps. `eps` takes the reward from faces
    that hardly move. Among equal lags the one nearest to 0 is best. Raises ValueError for unequal shapes, no
    rows or values that are not finite.
    """
    if v.ndim != 2 or v.shape != a.shape or not len(v):
        raise ValueError(f"zero_lag wants two [n, D] of one shape, got {list(v.shape)} and {list(a.shape)}")
    if not (np.isfinite(v).all() and np.isfinite(a).all()):
        raise ValueError("zero_lag: embeddings are not finite; the network or its input is broken")
    v, a = _centred(v), _centred(a)
    num, lags = len(v), np.arange(-max_lag, max_lag + 1)
    scale = np.sqrt((v**2).sum(axis=1).mean() * (a**2).sum(axis=1).mean()) + eps
    products = v @ a.T
    rho = np.array([np.trace(products, offset=lag) if abs(lag) < num else 0.0 for lag in lags]) / num / scale
    weights = np.exp((rho - rho.max()) / temperature)
    expected = float(weights @ np.abs(lags) / weights.sum())
    best = min(lags[rho >= rho.max() - TINY], key=lambda lag: (abs(lag), lag))
    rho_zero = float(rho[max_lag])
    value = rho_zero + 0.5 * (1 - expected / np.abs(lags).mean())
    return ZeroLag(float(value), rho, rho_zero, expected, int(best))


def _centred(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)
    return rows - rows.mean(axis=0)
