"""The whole of NAVA on 2 CPU cores in minutes: real speech, real recogniser, real FSDP2; only the sizes are
small."""

from experiments.recipes.base import Recipe


def mini() -> Recipe:
    """The demo. Every section's own defaults are this size; `params.yaml` holds the schedule and the numbers
    one plays with."""
    return Recipe(name="mini")
