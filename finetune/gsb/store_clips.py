"""The clips of a rollout store as the pairs and the raters of votes know them."""

from __future__ import annotations

from finetune.gsb.pairs import ClipRef
from finetune.rollout_store import RolloutStore

PRETRAINED = "pretrained"


def clips_of(store: RolloutStore, model: str = PRETRAINED) -> list[ClipRef]:
    """All clips as those of one model."""
    return [
        ClipRef(
            name,
            model,
            row["case_id"],
            row["prompt"],
            store.folder / row["video"] if row.get("video") else None,
            row["sha256"],
            row.get("video_sha256", ""),
        )
        for name, row in store.places.items()
    ]
