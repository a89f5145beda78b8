"""The strict reader of frozen configuration trees, which rewards has, for everything else.

Rewards import nothing of ours, so the one reader that both need lives with them.
"""

from rewards.options import from_json, nearest, override, to_json

__all__ = ["from_json", "nearest", "override", "to_json"]
