"""Telling a rank that failed from a rank whose peers are gone."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch.distributed as dist

_GONE = re.compile(
    r"(connection|socket).*(closed|reset|refused)|broken pipe|timed out waiting", re.IGNORECASE
)


def of_lost_peers(error: BaseException) -> bool:
    """Whether a collective failed because another rank went away, anywhere in the chain of causes."""
    return any(_lost(item) for item in _chain(error))


def _lost(error: BaseException) -> bool:
    kinds = (dist.DistError, dist.DistNetworkError, dist.DistStoreError)
    text = str(error)
    return isinstance(error, kinds) or (
        type(error) is RuntimeError and "gloo" in text.lower() and bool(_GONE.search(text))
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = [error]
    for item in seen:
        yield item
        failures = getattr(item, "failures", {})
        below = [pair[0] for pair in failures.values()] + [item.__cause__]
        seen.extend(child for child in below if isinstance(child, BaseException) and child not in seen)
