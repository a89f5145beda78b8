"""Scores the latents that alignment rolls out: codecs make clips of them, rewards of the catalog score the
clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.scoring.options import reward_options
from experiments.scoring.samples import clip_of
from finetune.rollout_store import RolloutStore
from finetune.scores import Scores
from pretrain.codecs.load import load_codecs
from pretrain.codecs.media import write_mp4
from pretrain.config import one_line
from pretrain.progress import track
from pretrain.prompt import PromptRow, parse
from pretrain.types import AUDIO_SAMPLE_RATE_HZ
from rewards.catalog import CATALOG, check_weights, open_rewards
from rewards.guardrails import GuardrailLimits, flags, measure
from rewards.options import fill
from rewards.types import Clip, Score


class AlignScorer:
    """finetune.scores.Scorer over the catalog. `weights`: reward -> its weight in the rubric; no judge may be
    among them.

    A reward that is better when lower counts with its sign turned; `parts` has it as it was measured. Raises
    ValueError or FileNotFoundError in one line for unknown rewards, wrong options, judges and missing
    weights.
    """

    def __init__(
        self,
        codec: str,
        weights: Mapping[str, float],
        options: Mapping[str, Mapping[str, Any]],
        fps: float = 24.0,
        limits: Mapping[str, float | None] | None = None,
    ) -> None:
        self.lower = {name for name in weights if name in CATALOG and CATALOG[name].lower_is_better}
        check_weights({name: -weight if name in self.lower else weight for name, weight in weights.items()})
        self.codecs, self.fps = load_codecs(Path(codec)), fps
        if any(
            weight and name.partition(".")[0] == f"sim_{self.codecs.speaker.name}"
            for name, weight in weights.items()
        ):
            heard = self.codecs.speaker.name
            raise ValueError(
                f"reward sim_{heard}: {heard} conditions the model, which would be scored by its own "
                "condition; take another"
            )
        self.limits = fill(GuardrailLimits, limits, "guardrails")
        self._stack = ExitStack()
        self.names = list(weights)
        self.rewards = self._stack.enter_context(open_rewards(self.names, options))

    def score(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow]) -> Scores:
        """As finetune.scores.Scorer.score; a clip of latents that are not finite has no scores."""
        finite = video.flatten(1).isfinite().all(1) & audio.flatten(1).isfinite().all(1)
        places = finite.nonzero()[:, 0].tolist()
        clips = self.clips(video[finite], audio[finite], [rows[place] for place in places])
        values, parts, reasons = {}, {}, {}
        for name, reward in zip(self.names, self.rewards, strict=True):
            try:
                scores = reward.score(clips)
            except Exception as error:
                raise ValueError(
                    f"reward {name} failed: {type(error).__name__}: {one_line(error)}"
                ) from error
            measured = _column([score.value for score in scores], places, len(rows))
            values[name] = -measured if name in self.lower else measured
            parts |= {name: measured} if name in self.lower else {}
            parts |= (
                {reward.name: measured} if name in CATALOG and name != reward.name else {}
            )  # e.g. preference_simulated
            parts |= {f"{name}.{part}": column for part, column in _parts(scores, places, len(rows)).items()}
            if why := next(
                (score.reason for score in scores if score.reason),
                "" if places else "latents that are not finite",
            ):
                reasons[name] = why
        return Scores(values, parts, self._guardrails(clips, places, len(rows)), reasons)

    def clips(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow]) -> list[Clip]:
        """Decoded clips; sound and picture are of one length."""
        if not rows:
            return []
        frames, sounds = self.codecs.video.decode(video).numpy(), self.codecs.audio.decode(audio).numpy()
        return [
            self._clip(picture, sound, row) for picture, sound, row in zip(frames, sounds, rows, strict=True)
        ]

    def write(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], folder: Path) -> list[Path]:
        """mp4 files named by their prompts."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for clip in self.clips(video, audio, rows):
            path = folder / f"{clip.name}.mp4"
            assert clip.frames is not None and clip.waveform is not None
            write_mp4(
                path,
                clip.frames,
                self.fps,
                clip.waveform,
                AUDIO_SAMPLE_RATE_HZ,
                {"comment": "generated by NAVA Align"},
            )
            paths.append(path)
        return paths

    def close(self) -> None:
        self._stack.close()

    def _clip(self, frames: np.ndarray, sound: np.ndarray, row: PromptRow) -> Clip:
        return clip_of(frames, sound, row.prompt, row.meta, row.reference_paths, row.data_id, self.fps)

    def _guardrails(self, clips: Sequence[Clip], places: Sequence[int], total: int) -> dict[str, Tensor]:
        measured = [measure(clip) for clip in clips]
        found = {
            name: _column([each[name] for each in measured], places, total)
            for name in (measured[0] if measured else {})
        }
        return {
            **found,
            "flagged": _column([float(bool(flags(each, self.limits))) for each in measured], places, total),
        }


def scorer_options(
    align: Any, corpus: Path, codec: Path, syncnet: Path, num_processes: int = 1
) -> dict[str, Any]:
    """Keyword arguments of AlignScorer for a recipe's section `align` and the outputs of those stages, as
    plain JSON values."""
    weights = align.rubric.weights()
    options = reward_options(
        list(weights), corpus, syncnet, num_processes=num_processes, given=align.reward_options
    )
    return {
        "codec": str(codec.absolute()),
        "weights": weights,
        "options": options,
        "fps": align.fps,
        "limits": dict(align.guardrails),
    }


def options_for(options: Mapping[str, Any], rewards: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of a scorer of these rewards alone, from those of one of all."""
    cut = {
        part: {name: options[part][name] for name in rewards if name in options[part]}
        for part in ("weights", "options")
    }
    return {**options, **cut}


def _column(values: Sequence[float], places: Sequence[int], total: int) -> Tensor:
    column = torch.full((total,), math.nan, dtype=torch.float64)
    column[list(places)] = torch.tensor(values, dtype=torch.float64)
    return column


def _parts(scores: Sequence[Score], places: Sequence[int], total: int) -> dict[str, Tensor]:
    names = sorted({name for score in scores for name in score.parts})
    return {
        name: _column([score.parts.get(name, math.nan) for score in scores], places, total) for name in names
    }


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
    found: dict[str, dict[str, float]] = {}
    with open_rewards(
        names, reward_options(names, corpus, syncnet, num_processes=num_processes, given=given)
    ) as scorers:
        batches = -(-len(store.places) // batch)
        for clips in track(
            _decoded(store, codec, batch), batches, f"rollouts scored by {', '.join(names)} (batches)"
        ):
            scores = {name: scorer.score(clips) for name, scorer in zip(names, scorers, strict=True)}
            for place, clip in enumerate(clips):
                found[clip.name] = {
                    feature: _value({name: scores[name][place] for name in names}, feature)
                    for feature in features
                }
    return found


def _decoded(store: RolloutStore, codec: Path, batch: int) -> Iterator[list[Clip]]:
    codecs = load_codecs(codec)
    store.check_codec(codecs, codec)
    names = list(store.places)
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        latents = store.rollout(part)
        frames, sounds = (
            codecs.video.decode(latents.video).numpy(),
            codecs.audio.decode(latents.audio).numpy(),
        )
        yield [
            _clip(name, store.places[name], *media)
            for name, media in zip(part, zip(frames, sounds, strict=True), strict=True)
        ]


def _clip(name: str, row: dict[str, Any], frames: Any, sound: Any) -> Clip:
    references = [Path(path) if path else None for path in row["reference_paths"]]
    return clip_of(frames, sound, parse(row["prompt"]), row["meta"], references, name)


def _value(scores: dict[str, Score], feature: str) -> float:
    name, _, part = feature.partition(".")
    return math.nan if scores[name].reason else scores[name].parts[part] if part else scores[name].value
