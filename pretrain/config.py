"""The strict reader of frozen configuration trees, which rewards has, for everything else.

Rewards import nothing of ours, so the one reader that both need lives with them.
"""

from rewards.options import (
    ADDED,
    INLINE,
    MEMBER,
    from_json,
    nearest,
    one_line,
    override,
    plain_fields,
    read_yaml,
    to_json,
)

__all__ = [
    "ADDED",
    "INLINE",
    "MEMBER",
    "from_json",
    "nearest",
    "one_line",
    "override",
    "plain_fields",
    "read_yaml",
    "to_json",
]
