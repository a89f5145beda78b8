"""What the clips of rewritten prompts are worth: a NAVA model makes them, rewards of the catalog score
them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.scoring.latents import AlignScorer
from pretrain.clip_kind import ClipKind, kind_of
from pretrain.codecs.base import check_trained_on
from pretrain.generation.conditions import conditioning_of, noise_of, reference_voices
from pretrain.generation.config import GenerateConfig, device_of
from pretrain.model.checkpoint import load_model
from pretrain.prompt import PromptRow, check_plain, parse
from pretrain.sampling import LatentRates, lower_precision, sample
from pretrain.types import AUDIO_TOKENS_PER_S, VIDEO_FRAMES_PER_LATENT

MAX_UNSCORED = 4  # calls in a row without any score: something is wrong with more than a clip


class RewriteClips:
    """finetune.rewriter.rewards.ClipScore: the weighted sum of rewards of one clip for each rewrite, NaN
    where one cannot score it.

    `weights`: reward -> weight from 0, one that is better when lower counts with its sign turned, judges are
    refused. All rewrites of a prompt start from the same noise, so that their clips differ by the words
    alone. Raises ValueError or FileNotFoundError in one line for unusable models, rewards, references, for
    prompts that start from an image, and where clips are never scored.
    """

    def __init__(
        self,
        model: Path,
        codec: Path,
        weights: Mapping[str, float],
        options: Mapping[str, Mapping[str, Any]],
        config: GenerateConfig,
        rows: Sequence[PromptRow],
        prompts: Path,
    ) -> None:
        if wrong := next((row for row in rows if row.image_path is not None), None):
            raise ValueError(
                f"{prompts}:{wrong.line} image_path: clips of rewrites start from no image; leave it out"
            )
        check_plain(rows, "rewriting by clips")
        if missing := next(
            ((row, path) for row in rows for path in row.reference_paths if path and not path.is_file()), None
        ):
            raise FileNotFoundError(
                f"{prompts}:{missing[0].line} spk_wavs: {missing[1]} does not exist; correct the path or "
                "remove it"
            )
        self.scorer = AlignScorer(str(codec), weights, options, config.fps)
        self.weights, self.config = dict(weights), config
        self._unscored, self._why = 0, ""
        self.network, described = load_model(model, config.weights)
        codecs = self.scorer.codecs
        check_trained_on(codecs, codec, described.facts, model)
        self.voices = reference_voices(rows, prompts, codecs)
        self.device = device_of(config)
        if config.bf16:
            lower_precision(self.network, torch.bfloat16)
        self.network.to(self.device).eval()
        made_of = [
            described.facts["checkpoint_id"],
            codecs.codec_id,
            self.weights,
            options,
            dataclasses.asdict(config),
        ]
        self.identity = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[
            :16
        ]

    def __call__(self, rewrites: Sequence[str], rows: Sequence[PromptRow]) -> list[float]:
        """One total for each rewrite, in order."""
        groups: dict[ClipKind, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            groups[kind_of(row, self.config)].append(place)
        totals = [math.nan] * len(rows)
        for places in groups.values():
            for start in range(0, len(places), self.config.batch_size):
                chosen = places[start : start + self.config.batch_size]
                asked = [_rewritten(rows[place], rewrites[place]) for place in chosen]
                for place, total in zip(chosen, self._totals(asked), strict=True):
                    totals[place] = total
        self._unscored = 0 if any(map(math.isfinite, totals)) else self._unscored + 1
        if self._unscored >= MAX_UNSCORED:
            raise ValueError(
                f"no clip of {MAX_UNSCORED} steps in a row has a score ({self._why}); check --rewards and "
                "the prompts' meta"
            )
        return totals

    def close(self) -> None:
        self.scorer.close()

    def _totals(self, rows: Sequence[PromptRow]) -> list[float]:
        config, codecs = self.config, self.scorer.codecs
        noise = noise_of(rows, config, self.device)
        clock = LatentRates(config.fps / VIDEO_FRAMES_PER_LATENT, AUDIO_TOKENS_PER_S)
        made = sample(
            self.network,
            noise,
            conditioning_of(rows, codecs, self.voices).to(self.device),
            clock,
            config.sampler,
        )
        assert made.video is not None and made.audio is not None
        scores = self.scorer.score(made.video.float().cpu(), made.audio.float().cpu(), rows)
        self._why = ", ".join(f"{name}: {why}" for name, why in scores.reasons.items()) or "no reason given"
        return (
            torch.stack([weight * scores.values[name] for name, weight in self.weights.items() if weight])
            .sum(0)
            .tolist()
        )


def _rewritten(row: PromptRow, rewrite: str) -> PromptRow:
    """The row with other words around the same speech."""
    return dataclasses.replace(row, prompt=parse(rewrite, row.prompt.references))
