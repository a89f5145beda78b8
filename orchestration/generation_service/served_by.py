"""The model that a job was accepted for, kept with the job, and whether the one served now is that."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestration.generation_service.job import VideoJob
from orchestration.generation_service.offer import Offer, Wanted

GONE = "model_gone"  # code of jobs that fail because their model is served no more


@dataclass(frozen=True, kw_only=True)
class ServedBy:
    """checkpoint_id: "" where the model's folder has none; adapters: ids by name, of those that are used;
    fps: what a job's number of frames was worked out with."""

    name: str
    checkpoint_id: str = ""
    weights: str = ""
    adapters: Mapping[str, str] = field(default_factory=dict)
    fps: float = 0.0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> ServedBy | None:
        """None of "", which jobs of earlier versions have."""
        return ServedBy(**json.loads(text)) if text else None

    @staticmethod
    def of(offer: Offer, wanted: Wanted) -> ServedBy:
        return ServedBy(
            name=offer.name,
            checkpoint_id=offer.checkpoint_id,
            weights=offer.config.weights,
            adapters={name: offer.adapter_ids.get(name, "") for name in wanted.adapters},
            fps=offer.config.fps,
        )


def no_longer(job: VideoJob, offer: Offer) -> str:
    """Why a job cannot be made as it was accepted, "" where it can. Of a job that does not know its model
    only the adapters are compared, by name."""
    wanted, kept = Wanted.from_json(job.wanted), ServedBy.from_json(job.served)
    now = ServedBy.of(offer, wanted)
    if kept and kept.checkpoint_id and now.checkpoint_id:
        other = kept.checkpoint_id != now.checkpoint_id
    else:
        other = kept is not None and kept.name != now.name
    if kept and other:
        return f"accepted for model {_named(kept)}, served now is {_named(now)}"
    if gone := sorted(set(wanted.adapters) - set(offer.adapters)):
        return f"adapter {gone[0]!r} is not served any more"
    if kept is None:
        return ""
    for name, id in kept.adapters.items():
        if id != now.adapters[name]:
            return f"accepted for adapter {name!r} of id {id}, served now is {now.adapters[name]}"
    if kept.weights != now.weights:
        return (
            f"accepted for the {kept.weights} weights of the model, served now are its {now.weights} weights"
        )
    if kept.fps != now.fps:
        return f"accepted for {kept.fps:g} frames a second, made now are {now.fps:g}"
    return ""


def _named(one: ServedBy) -> str:
    return f"{one.name!r}" + (f" (checkpoint {one.checkpoint_id})" if one.checkpoint_id else "")
