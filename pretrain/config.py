"""The strict reader of frozen configuration trees, which rewards has, for everything else.

Rewards import nothing of ours, so the one reader that both need lives with them.
"""

from rewards.options import (
    ADDED,
    BELOW_ONE,
    FINITE,
    FROM_ONE,
    INLINE,
    MEMBER,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Bounds,
    check_bounds,
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
    "BELOW_ONE",
    "FINITE",
    "FROM_ONE",
    "INLINE",
    "MEMBER",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SHARE",
    "Bounds",
    "check_bounds",
    "from_json",
    "nearest",
    "one_line",
    "override",
    "plain_fields",
    "read_yaml",
    "to_json",
]
