"""Score latents of alignment rollouts: decode with codecs, score with catalog rewards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.scoring.clips import ClipFile, clip_file
from experiments.scoring.faults import CarefulReward
from experiments.scoring.options import reward_options
from experiments.scoring.reward_files import RewardFiles
from experiments.scoring.samples import FPS
from experiments.scoring.score import score_clips
from finetune.rollout_store import RolloutStore
from finetune.scores import Scores
from pretrain.clip_files import COMMENT, write_clips
from pretrain.codecs.base import Codecs
from pretrain.codecs.load import load_codecs
from pretrain.progress import track
from pretrain.prompt import PromptRow
from pretrain.types import AUDIO_SAMPLE_RATE_HZ
from rewards.base import Interruptible
from rewards.catalog import CATALOG, check_names, check_weights, open_rewards
from rewards.guardrails import GuardrailLimits
from rewards.options import fill
from rewards.traits import lower_is_better
from rewards.types import Clip


class AlignScorer:
    """finetune.scores.Scorer over the catalog. `weights`: reward -> rubric weight; judges are rejected there.

    `judges`: measured of held-out prompts only. A reward that is better when lower is negated; `parts` has
    its original value. Raises ValueError or FileNotFoundError in one line for unknown rewards, wrong options,
    judges with a weight and missing weights.
    """

    def __init__(
        self,
        codec: str,
        weights: Mapping[str, float],
        options: Mapping[str, Mapping[str, Any]],
        fps: float = 24.0,
        limits: Mapping[str, float | None] | None = None,
        judges: Sequence[str] = (),
    ) -> None:
        names = (*weights, *judges)
        check_names(names)
        self.lower = {name for name in names if lower_is_better(name)}
        check_weights({name: -weight if name in self.lower else weight for name, weight in weights.items()})
        self.codecs, self.fps = load_codecs(Path(codec)), fps
        if any(
            weight and name.partition(".")[0] == f"sim_{self.codecs.speaker.name}"
            for name, weight in weights.items()
        ):
            speaker = self.codecs.speaker.name
            raise ValueError(
                f"reward sim_{speaker}: {speaker} conditions the model, which would be scored by its own "
                "condition; take another"
            )
        self.limits = fill(GuardrailLimits, limits, "guardrails")
        self._stack = ExitStack()
        opened = self._stack.enter_context(open_rewards(list(names), options))
        self.rewards = dict(zip(weights, opened, strict=False))
        self.judges = dict(zip(judges, opened[len(weights) :], strict=True))
        self._careful = {
            name: CarefulReward(name, each) for name, each in {**self.rewards, **self.judges}.items()
        }

    def score(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], judged: bool = False) -> Scores:
        """As finetune.scores.Scorer.score.

        Clips with non-finite latents get no scores, nor those that a reward raises on while it scores others
        (CarefulReward)."""
        finite = video.flatten(1).isfinite().all(1) & audio.flatten(1).isfinite().all(1)
        places = finite.nonzero()[:, 0].tolist()
        clips = self.clips(video[finite], audio[finite], [rows[place] for place in places])
        asked = [*self.rewards, *(self.judges if judged else ())]
        scored = score_clips({name: self._careful[name] for name in asked}, clips, self.limits)

        def column(values: Iterable[float]) -> Tensor:
            filled = torch.full((len(rows),), math.nan, dtype=torch.float64)
            filled[places] = torch.tensor(list(values), dtype=torch.float64)
            return filled

        values, parts, reasons = {}, {}, {}
        for name, reward in self.rewards.items():
            scores = [clip.scores[name] for clip in scored]
            measured = column(score.value for score in scores)
            values[name] = -measured if name in self.lower else measured
            if name in self.lower:
                parts[name] = measured
            if name in CATALOG and name != reward.name:  # e.g. preference_simulated
                parts[reward.name] = measured
            for part in sorted({part for score in scores for part in score.parts}):
                parts[f"{name}.{part}"] = column(score.parts.get(part, math.nan) for score in scores)
            missing = "" if places else "latents that are not finite"
            if why := next((score.reason for score in scores if score.reason), missing):
                reasons[name] = why
        guardrails = {
            name: column(clip.guardrails[name] for clip in scored)
            for name in (scored[0].guardrails if scored else ())
        }
        guardrails["flagged"] = column(float(bool(clip.flags)) for clip in scored)
        judges = {}
        for name in self.judges if judged else ():
            measured = column(clip.scores[name].value for clip in scored)
            judges[name] = -measured if name in self.lower else measured
        return Scores(values, parts, guardrails, reasons, judges)

    def clips(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow]) -> list[Clip]:
        """Decoded clips; sound and picture have equal duration."""
        return decoded(self.codecs, video, audio, [prompt_clip(row) for row in rows], self.fps)

    def write(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], folder: Path) -> list[Path]:
        """mp4 files named by their prompts."""
        paths = [folder / f"{row.data_id}.mp4" for row in rows]
        write_clips(self.codecs, video, audio, self.fps, paths, {"comment": COMMENT})
        return paths

    def interrupt(self) -> None:
        """End the waits of rewards for their servers; safe in a signal handler."""
        for reward in (*self.rewards.values(), *self.judges.values()):
            if isinstance(reward, Interruptible):
                reward.interrupt()

    def close(self) -> None:
        self._stack.close()


def scorer_options(
    align: Any,
    corpus: Path,
    codec: Path,
    syncnet: Path,
    num_processes: int = 1,
    files: RewardFiles | None = None,
) -> dict[str, Any]:
    """Keyword arguments of AlignScorer for a recipe's `align` section and stage outputs, as JSON values.

    files: of the published rewards; `align.reward_options` come before them.
    """
    weights, judges = align.rubric.weights(), list(align.rubric.watched)
    names = [*weights, *judges]
    given = (files or RewardFiles()).over(names, align.reward_options)
    options = reward_options(names, corpus, syncnet, num_processes=num_processes, given=given)
    return {
        "codec": str(codec.absolute()),
        "weights": weights,
        "options": options,
        "fps": align.fps,
        "limits": dict(align.guardrails),
        "judges": judges,
    }


def options_for(options: Mapping[str, Any], rewards: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments for a scorer of a subset of rewards; the judges go with the first of the rubric."""
    judges = options.get("judges", []) if next(iter(options["weights"])) in rewards else []
    cut = {
        "weights": {name: options["weights"][name] for name in rewards if name in options["weights"]},
        "options": {
            name: options["options"][name] for name in (*rewards, *judges) if name in options["options"]
        },
    }
    return {**options, **cut, **({"judges": judges} if "judges" in options else {})}


def decoded(
    codecs: Codecs, video: Tensor, audio: Tensor, files: Sequence[ClipFile], fps: float = FPS
) -> list[Clip]:
    """Clips of latents, video [B, C, F, H, W] and audio [B, C, L], with their prompts and conditions."""
    if not files:
        return []
    frames, sounds = codecs.video.decode(video).numpy(), codecs.audio.decode(audio).numpy()
    return [
        file.clip(picture, sound, fps, AUDIO_SAMPLE_RATE_HZ)
        for file, picture, sound in zip(files, frames, sounds, strict=True)
    ]


def prompt_clip(row: PromptRow) -> ClipFile:
    """What rewards see of a prompt; the clip's media come from latents."""
    return clip_file(
        row.data_id, Path(), row.prompt.text, row.meta, row.reference_paths, image=row.image_path
    )


def score_store(
    store: RolloutStore,
    features: Sequence[str],
    codec: Path,
    corpus: Path,
    syncnet: Path,
    batch: int,
    num_processes: int,
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, float]]:
    """Clip -> value of each feature (a reward, or `reward.part`), NaN where it could not be scored.

    `codec`, `corpus` and `syncnet` are outputs of those stages; batch: clips decoded at once; given: options
    of rewards. Raises ValueError for another codec's latents and whatever opening the rewards raises.
    """
    names = list(dict.fromkeys(feature.partition(".")[0] for feature in features))
    options = reward_options(names, corpus, syncnet, num_processes=num_processes, given=given)
    found: dict[str, dict[str, float]] = {}
    with open_rewards(names, options) as opened:
        rewards = {name: CarefulReward(name, reward) for name, reward in zip(names, opened, strict=True)}
        batches, about = len(_batches(store, batch)), f"rollouts scored by {', '.join(names)} (batches)"
        for clips in track(_decoded(store, codec, batch), batches, about):
            for clip, scored in zip(clips, score_clips(rewards, clips), strict=True):
                found[clip.name] = {feature: scored.value(feature) for feature in features}
    return found


def _decoded(store: RolloutStore, codec: Path, batch: int) -> Iterator[list[Clip]]:
    codecs = load_codecs(codec)
    store.check_codec(codecs, codec)
    for part in _batches(store, batch):
        latents = store.rollout(part)
        yield decoded(codecs, latents.video, latents.audio, [_stored(name, store) for name in part])


def _batches(store: RolloutStore, batch: int) -> list[list[str]]:
    """Clips of one kind together."""
    kinds = store.by_kind()
    return [names[start : start + batch] for names in kinds for start in range(0, len(names), batch)]


def _stored(name: str, store: RolloutStore) -> ClipFile:
    row = store.places[name]
    references = [Path(path) if path else None for path in row["reference_paths"]]
    image = row.get("image_path")
    return clip_file(name, Path(), row["prompt"], row["meta"], references, image=image)
