"""Flow-DPO on good / same / bad votes, with modelled ties and one modality per axis (alignment.md 2.6).

    E = mean over elements of (v(x_s) - (eps - x0))^2,  D(x0) = E(v) - E(v_ref)
    margin m = -(beta / 2) (D(first) - D(second))
    Rao-Kupper, a = ln theta:  P(first) = sigmoid(m - a),  P(second) = sigmoid(-m - a),
                               P(tie) = (theta^2 - 1) P(first) P(second)

A picture vote is about the video margin, a voice vote about the audio margin, sync and overall about their
sum; an axis voted Same brings only its tie loss, an axis nobody voted on brings nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from finetune.noising import Levels, draw, mean_square, metric, noised, velocities
from finetune.objectives.base import Objective, Phase, PreferenceFiles
from finetune.types import FIRST, NO_LABEL, SECOND, TIE, Key, ObjectiveLoss, Policy, PreferencePairs
from pretrain.codecs.base import Codecs
from pretrain.flow.path import velocity_target
from pretrain.types import Conditioning, Stream


@dataclass(frozen=True, kw_only=True)
class TieShares:
    """Share of Same votes per kind, in [0, 1): theta = (1 + p) / (1 - p). Raises ValueError beyond.

    Raises ValueError beyond.
    """

    video: float = 0.0
    audio: float = 0.0
    total: float = 0.0

    def __post_init__(self) -> None:
        for name in ("video", "audio", "total"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"tie share of {name} must be in [0, 1), got {getattr(self, name)}; votes that are all "
                    "ties teach nothing"
                )


@dataclass(frozen=True, kw_only=True)
class GsbDpoConfig:
    """beta: scale of E per element; ties: model or drop them (plain flow-DPO); tie_shares: from `tie_shares`.

    The weights are of the three kinds of votes; reference_weight: of mean((v - v_ref)^2). Raises ValueError
    for values out of range.
    """

    beta: float = 100.0
    ties: Literal["model", "drop"] = "model"
    tie_shares: TieShares = field(default_factory=TieShares)
    video_weight: float = 1.0
    audio_weight: float = 1.0
    total_weight: float = 1.0
    reference_weight: float = 0.0
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.ties not in ("model", "drop"):
            raise ValueError(
                f"gsb_dpo: beta must be positive and ties model or drop, got {self.beta} and {self.ties!r}"
            )
        if min(self.video_weight, self.audio_weight, self.total_weight, self.reference_weight) < 0:
            raise ValueError("gsb_dpo: weights must not be negative")


class LogProbs(NamedTuple):
    """ln of the three outcomes, each [B]; `tie` is -inf at theta 1."""

    first: Tensor
    tie: Tensor
    second: Tensor


def tie_theta(share: float) -> float:
    """theta >= 1 at which two equal clips tie with this probability."""
    return (1 + share) / (1 - share)


def tie_shares(pairs: PreferencePairs) -> TieShares:
    """Shares of Same votes of a whole preference set. Raises ValueError if a kind has only ties."""

    def share(labels: Tensor) -> float:
        labelled = int((labels != NO_LABEL).sum())
        return int((labels == TIE).sum()) / labelled if labelled else 0.0

    return TieShares(
        video=share(pairs.labels_video), audio=share(pairs.labels_audio), total=share(pairs.labels_total)
    )


def outcome_log_probs(margin: Tensor, share: float) -> LogProbs:
    """Rao-Kupper for tie share p; finite wherever the margin is, but for ties at p = 0."""
    theta = torch.tensor(tie_theta(share), dtype=torch.float64)
    first, second = logsigmoid(margin - theta.log().item()), logsigmoid(-margin - theta.log().item())
    return LogProbs(first, first + second + torch.log((theta - 1) * (theta + 1)).item(), second)


def preference_loss(margin: Tensor, labels: Tensor, share: float) -> Tensor:
    """[B]: negative log-probability of each label, 0 without one. Raises ValueError for a tie at share 0."""
    if share == 0 and bool((labels == TIE).any()):
        raise ValueError(
            "a tie has no probability at tie share 0; set tie_shares from the votes, or ties to drop"
        )
    probs = outcome_log_probs(margin, share)
    chosen = torch.where(labels == FIRST, probs.first, torch.where(labels == SECOND, probs.second, probs.tie))
    # where, not a product with a mask: at share 0 the tie's -inf times 0 would be NaN
    return torch.where(labels == NO_LABEL, 0.0, -chosen)


def margin(
    error: Tensor, reference: Tensor, other_error: Tensor, other_reference: Tensor, beta: float
) -> Tensor:
    """[B]: how much better the policy fits the first clip than the reference does. Arguments: E [B]."""
    return -(beta / 2) * ((error - reference) - (other_error - other_reference))


def count(batch: PreferencePairs, config: GsbDpoConfig) -> Tensor:
    """Pairs with a label that is used."""
    return torch.stack([labels != NO_LABEL for labels in _labels(batch, config)]).any(0).sum().double()


def loss(policy: Policy, batch: PreferencePairs, config: GsbDpoConfig, key: Key) -> ObjectiveLoss:
    """Two forward passes over both clips of every pair, with one sigma and one noise per pair."""
    drawn = draw(batch.first, config.levels, key)
    first_streams, second_streams = noised(batch.first, drawn), noised(batch.second, drawn)
    streams = _stacked(first_streams[0], second_streams[0]), _stacked(first_streams[1], second_streams[1])
    conditioning = _conditioning(batch.first.conditioning, batch.second.conditioning)
    with torch.no_grad():
        reference = velocities(policy, "reference", streams, conditioning)
    now = velocities(policy, "default", streams, conditioning)
    targets = [
        torch.cat(
            [
                velocity_target(getattr(clips, name), getattr(drawn, name))
                for clips in (batch.first, batch.second)
            ]
        )
        for name in ("video", "audio")
    ]
    margins: list[Tensor] = []
    away = torch.zeros_like(drawn.weight)
    for velocity, before, target, weight in zip(
        now, reference, targets, (config.video_weight, config.audio_weight), strict=True
    ):
        first, second = mean_square(velocity - target).chunk(2)
        first_before, second_before = mean_square(before - target).chunk(2)
        margins.append(drawn.weight * margin(first, first_before, second, second_before, config.beta))
        away = away + weight * torch.stack(mean_square(velocity - before).chunk(2)).mean(0)
    margins.append(margins[0] + margins[1])
    return _summed(batch, config, margins, away)


def _summed(
    batch: PreferencePairs, config: GsbDpoConfig, margins: list[Tensor], away: Tensor
) -> ObjectiveLoss:
    labels, weights = _labels(batch, config), (config.video_weight, config.audio_weight, config.total_weight)
    shares = config.tie_shares if config.ties == "model" else TieShares()
    used = torch.stack([labelled != NO_LABEL for labelled in labels]).any(0)
    per_pair = torch.where(used, config.reference_weight * away, 0.0)
    metrics = {"from_reference": metric(away, used)}
    for name, found, labelled, weight in zip(
        ("video", "audio", "total"), margins, labels, weights, strict=True
    ):
        terms = preference_loss(found, labelled, getattr(shares, name))
        per_pair = per_pair + weight * terms
        decided = (labelled == FIRST) | (labelled == SECOND)
        metrics[f"loss_{name}"] = metric(terms, labelled != NO_LABEL)
        metrics[f"margin_{name}"] = metric(found * labelled, decided)
        metrics[f"accuracy_{name}"] = metric((found * labelled > 0).float(), decided)
    return ObjectiveLoss(per_pair.sum(), count(batch, config), {"loss": metric(per_pair, used), **metrics})


def _labels(batch: PreferencePairs, config: GsbDpoConfig) -> list[Tensor]:
    labels = [batch.labels_video, batch.labels_audio, batch.labels_total]
    if config.ties == "drop":
        labels = [
            torch.where(labelled == TIE, labelled.new_tensor(NO_LABEL), labelled) for labelled in labels
        ]
    return labels


def _stacked(first: Stream, second: Stream) -> Stream:
    latents, lengths, sigma = (
        torch.cat([getattr(first, name), getattr(second, name)]) for name in ("latents", "lengths", "sigma")
    )
    return Stream(latents, lengths, sigma, first.rate_hz, first.video_rate_hz)


def _conditioning(first: Conditioning, second: Conditioning) -> Conditioning:
    return Conditioning(
        *(torch.cat([getattr(first, name), getattr(second, name)]) for name in first.__dataclass_fields__)
    )


@dataclass(frozen=True, kw_only=True)
class GsbDpoPhase(Phase):
    """No rollouts: a round takes `pairs_per_round` of the preference pairs.

    prompts_per_round and clips_per_prompt are ignored.
    """

    objective: GsbDpoConfig = field(default_factory=GsbDpoConfig)
    pairs_per_round: int = 96
    tie_shares_from_pairs: bool = True  # False: those of the objective
    steps_per_epoch: int = 4
    lr: float = 3e-4  # 1e-3 overfits 309 pairs: nothing held out improves
    micro_batch: int = 16  # pairs

    @property
    def clips_per_round(self) -> int:
        return 2 * self.pairs_per_round

    def _check_steps(self) -> None:
        if self.pairs_per_round < 1 or self.pairs_per_round % self.steps_per_epoch:
            raise ValueError(
                f"steps_per_epoch {self.steps_per_epoch} must divide pairs_per_round {self.pairs_per_round}"
            )


class GsbDpo(Objective[GsbDpoPhase]):
    name, phase_type, needs_pairs = "gsb_dpo", GsbDpoPhase, True

    def rollout(self) -> None:
        return None

    def check_ranks(self, world_size: int) -> None:
        self._check_divides("pairs_per_round", world_size * self.phase.steps_per_epoch, world_size)

    def prepare(self, files: PreferenceFiles, codecs: Codecs | None) -> None:
        from finetune.pair_batches import open_pairs  # imported late: reading a recipe must not wait for it
        from finetune.rollout_store import open_store
        from pretrain.codecs.load import load_codecs

        if files.pairs is None or files.clips is None:
            raise ValueError("gsb_dpo needs preference pairs and the rollouts they speak of; give both")
        store = open_store(files.clips)
        store.check_codec(codecs or load_codecs(files.codec), files.codec)
        self.source = open_pairs(files.pairs, store, self.phase.pairs_per_round)
        try:
            shares = tie_shares(self.source.batch(self.source.pairs))
        except ValueError as error:
            raise ValueError(f"{files.pairs}: {error}") from None
        objective = self.phase.objective
        self.config = replace(objective, tie_shares=shares) if self.phase.tie_shares_from_pairs else objective

    def given_batch(self, seed: int, index: int, rank: int, world_size: int) -> PreferencePairs:
        phase = self.phase
        return self.source.of_round(
            phase.pairs_per_round, phase.steps_per_epoch, seed, index, rank, world_size
        )

    def given_facts(self) -> Mapping[str, float]:
        return {"pairs": float(self.phase.pairs_per_round)}

    def step_rows(self, batch: PreferencePairs, key: Key) -> list[Tensor]:
        return list(torch.arange(len(batch.labels_total)).chunk(self.phase.steps_per_epoch))

    def count(self, batch: PreferencePairs) -> Tensor:
        return count(batch, self.config)

    def loss(self, policy: Policy, batch: PreferencePairs, key: Key) -> ObjectiveLoss:
        return loss(policy, batch, self.config, key)
