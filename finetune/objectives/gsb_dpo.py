"""Flow-DPO on good / same / bad votes, with modelled ties and a term for each axis (alignment.md 2.6).

    E = mean over elements of (v(x_s) - (eps - x0))^2,  D(x0) = E(v) - E(v_ref)
    margin m = -(beta / 2) (D(first) - D(second))
    Rao-Kupper, a = ln theta:  P(first) = sigmoid(m - a),  P(second) = sigmoid(-m - a),
                               P(tie) = (theta^2 - 1) P(first) P(second)

Every axis of votes has its own label, theta and term: picture is about the video margin, voice about the
audio margin, sync and overall about their sum. An axis voted Same brings only its tie loss, an axis nobody
voted on brings nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from finetune.gsb.pairs import PreferencePair, tie_rates, tie_shares
from finetune.gsb.votes import AXES
from finetune.noising import Levels, draw, mean_square, metric, noised, velocities
from finetune.objectives.base import Objective, Passes, Phase, PreferenceFiles
from finetune.types import FIRST, NO_LABEL, SECOND, TIE, Key, ObjectiveLoss, Policy, PreferencePairs
from pretrain.codecs.base import Codecs
from pretrain.config import NOT_NEGATIVE, check_bounds
from pretrain.flow.path import velocity_target
from pretrain.types import Stream, sent

# the margins whose sum an axis is about
MODALITIES: Mapping[str, tuple[str, ...]] = {
    "overall": ("video", "audio"),
    "sync": ("video", "audio"),
    "voice": ("audio",),
    "picture": ("video",),
}


@dataclass(frozen=True, kw_only=True)
class TieRates:
    """Rate p in [0, 1) of Same at margin 0 of each axis: theta = (1 + p) / (1 - p).

    Raises ValueError for others.
    """

    overall: float = 0.0
    sync: float = 0.0
    voice: float = 0.0
    picture: float = 0.0

    def __post_init__(self) -> None:
        for axis in AXES:
            if not 0 <= getattr(self, axis) < 1:
                raise ValueError(
                    f"tie rate of {axis} must be in [0, 1), got {getattr(self, axis)}; votes that are all "
                    "ties teach nothing"
                )


@dataclass(frozen=True, kw_only=True)
class AxisWeights:
    """Weight of each axis' term; 0 leaves the axis out. Raises ValueError for negative ones and all 0."""

    overall: float = 1.0
    sync: float = 1.0
    voice: float = 1.0
    picture: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, dict.fromkeys(AXES, NOT_NEGATIVE), "weights.")
        if not any(getattr(self, axis) for axis in AXES):
            raise ValueError(f"weights: one must be above 0, got {self}")

    def used(self) -> tuple[str, ...]:
        """Axes with a weight."""
        return tuple(axis for axis in AXES if getattr(self, axis))


@dataclass(frozen=True, kw_only=True)
class GsbDpoConfig:
    """beta: scale of E per element; ties: model or drop them (plain flow-DPO); tie_rates: of each axis.

    weights: of the axes' terms; reference_weight: of mean((v - v_ref)^2), summed over modalities. Raises
    ValueError for values out of range.
    """

    beta: float = 100.0
    ties: Literal["model", "drop"] = "model"
    tie_rates: TieRates = field(default_factory=TieRates)
    weights: AxisWeights = field(default_factory=AxisWeights)
    reference_weight: float = 0.0
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf or self.ties not in ("model", "drop"):
            raise ValueError(
                f"gsb_dpo: beta must be positive and ties model or drop, got {self.beta} and {self.ties!r}"
            )
        check_bounds(self, {"reference_weight": NOT_NEGATIVE}, "gsb_dpo: ")


class LogProbs(NamedTuple):
    """ln of the three outcomes, each [B]; `tie` is -inf at theta 1."""

    first: Tensor
    tie: Tensor
    second: Tensor


def tie_theta(rate: float) -> float:
    """theta >= 1 at which two equal clips tie with this probability."""
    return (1 + rate) / (1 - rate)


def for_votes(config: GsbDpoConfig, pairs: Sequence[PreferencePair], fit: bool = True) -> GsbDpoConfig:
    """The config for a preference set: tie rates fitted to its votes, without axes that nobody decided.

    An axis whose labels are all Same says nothing about what is better and has no theta: its weight becomes
    0. `fit=False` keeps the tie rates. Raises ValueError if no axis with a weight is decided, and if one has
    ties that are modelled at tie rate 0.
    """
    shares, rates = tie_shares(pairs), tie_rates(pairs)
    asked = [axis for axis in config.weights.used() if axis in shares]
    if not any(axis in rates for axis in asked):
        found = f"the labels of {', '.join(asked)} are all Same" if asked else "nobody voted"
        raise ValueError(
            f"{found} (axes with a weight: {', '.join(config.weights.used())}); votes that are all ties "
            "teach nothing: give votes with a decision, or another axis a weight"
        )
    kept = replace(
        config, weights=replace(config.weights, **{axis: 0.0 for axis in AXES if axis not in rates})
    )
    if fit:
        return replace(kept, tie_rates=TieRates(**rates))
    for axis in kept.weights.used():
        if config.ties == "model" and shares[axis] and not getattr(config.tie_rates, axis):
            raise ValueError(
                f"{shares[axis]:.0%} of the labels of {axis} are Same, which have no probability at tie rate "
                f"0; set gsb_dpo.objective.tie_rates.{axis}, gsb_dpo.tie_rates_from_pairs=true, or "
                "gsb_dpo.objective.ties=drop"
            )
    return kept


def outcome_log_probs(margin: Tensor, rate: float) -> LogProbs:
    """Rao-Kupper for tie rate p at margin 0; finite wherever the margin is, but for ties at p = 0."""
    theta = torch.tensor(tie_theta(rate), dtype=torch.float64)
    first, second = logsigmoid(margin - theta.log().item()), logsigmoid(-margin - theta.log().item())
    return LogProbs(first, first + second + torch.log((theta - 1) * (theta + 1)).item(), second)


def preference_loss(margin: Tensor, labels: Tensor, rate: float) -> Tensor:
    """[B]: negative log-probability of each label, 0 without one; labels belong on the host.

    Raises ValueError for a tie at rate 0.
    """
    if rate == 0 and bool((labels == TIE).any()):
        raise ValueError(
            "a tie has no probability at tie rate 0; set tie_rates from the votes, or ties to drop"
        )
    probs, labels = outcome_log_probs(margin, rate), sent(labels, margin.device)
    chosen = torch.where(labels == FIRST, probs.first, torch.where(labels == SECOND, probs.second, probs.tie))
    # where, not a product with a mask: at rate 0 the tie's -inf times 0 would be NaN
    return torch.where(labels == NO_LABEL, 0.0, -chosen)


def margin(
    error: Tensor, reference: Tensor, other_error: Tensor, other_reference: Tensor, beta: float
) -> Tensor:
    """[B]: how much better the policy fits the first clip than the reference does. Arguments: E [B]."""
    return -(beta / 2) * ((error - reference) - (other_error - other_reference))


def count(batch: PreferencePairs, config: GsbDpoConfig) -> Tensor:
    """Pairs with a label that is used."""
    return _used(batch, config).sum().double()


def loss(policy: Policy, batch: PreferencePairs, config: GsbDpoConfig, key: Key) -> ObjectiveLoss:
    """Two forward passes over both clips of every pair, with one sigma and one noise per pair."""
    drawn = draw(batch.first, config.levels, key)
    first_streams, second_streams = noised(batch.first, drawn), noised(batch.second, drawn)
    streams = _stacked(first_streams[0], second_streams[0]), _stacked(first_streams[1], second_streams[1])
    conditioning = batch.first.conditioning.beside(batch.second.conditioning)
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
    margins: dict[str, Tensor] = {}
    away = torch.zeros_like(drawn.weight)
    for name, velocity, before, target in zip(("video", "audio"), now, reference, targets, strict=True):
        first, second = mean_square(velocity - target).chunk(2)
        first_before, second_before = mean_square(before - target).chunk(2)
        margins[name] = drawn.weight * margin(first, first_before, second, second_before, config.beta)
        away = away + torch.stack(mean_square(velocity - before).chunk(2)).mean(0)
    return _summed(batch, config, margins, away)


def _summed(
    batch: PreferencePairs, config: GsbDpoConfig, margins: Mapping[str, Tensor], away: Tensor
) -> ObjectiveLoss:
    rates = config.tie_rates if config.ties == "model" else TieRates()
    used = sent(_used(batch, config), away.device)
    per_pair = torch.where(used, config.reference_weight * away, 0.0)
    metrics = {"from_reference": metric(away, used)}
    for axis, labels in _labels(batch, config).items():
        found = torch.stack([margins[name] for name in MODALITIES[axis]]).sum(0)
        rate = getattr(rates, axis)
        terms = preference_loss(found, labels, rate)
        labels = sent(labels, found.device)
        per_pair = per_pair + getattr(config.weights, axis) * terms
        decided = (labels == FIRST) | (labels == SECOND)
        metrics[f"loss_{axis}"] = metric(terms, labels != NO_LABEL)
        metrics[f"tie_rate_{axis}"] = metric(torch.full_like(terms, rate), labels != NO_LABEL)
        metrics[f"margin_{axis}"] = metric(found * labels, decided)
        metrics[f"accuracy_{axis}"] = metric((found * labels > 0).float(), decided)
    return ObjectiveLoss(per_pair.sum(), count(batch, config), {"loss": metric(per_pair, used), **metrics})


def _labels(batch: PreferencePairs, config: GsbDpoConfig) -> dict[str, Tensor]:
    """Labels [B] of each axis with a weight."""
    labels = {axis: batch.of_axis(axis) for axis in config.weights.used()}
    if config.ties == "drop":
        return {
            axis: torch.where(found == TIE, found.new_tensor(NO_LABEL), found)
            for axis, found in labels.items()
        }
    return labels


def _used(batch: PreferencePairs, config: GsbDpoConfig) -> Tensor:
    """[B] bool: pairs with a label."""
    return torch.stack([labels != NO_LABEL for labels in _labels(batch, config).values()]).any(0)


def _stacked(first: Stream, second: Stream) -> Stream:
    latents, lengths, sigma = (
        torch.cat([getattr(first, name), getattr(second, name)]) for name in ("latents", "lengths", "sigma")
    )
    return Stream(latents, lengths, sigma, first.rate_hz, first.video_rate_hz)


@dataclass(frozen=True, kw_only=True)
class GsbDpoPhase(Phase):
    """No rollouts: a round takes `pairs_per_round` of the preference pairs.

    prompts_per_round and clips_per_prompt are ignored.
    """

    objective: GsbDpoConfig = field(default_factory=GsbDpoConfig)
    pairs_per_round: int = 96
    tie_rates_from_pairs: bool = True  # False: those of the objective
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
            self.config = for_votes(self.phase.objective, self.source.pairs, self.phase.tie_rates_from_pairs)
        except ValueError as error:
            raise ValueError(f"{files.pairs}: {error}") from None

    def given_batch(self, seed: int, index: int, rank: int, world_size: int) -> PreferencePairs:
        phase = self.phase
        return self.source.of_round(
            phase.pairs_per_round, phase.steps_per_epoch, seed, index, rank, world_size
        )

    def given_facts(self) -> Mapping[str, float]:
        return {"pairs": float(self.phase.pairs_per_round)}

    def step_rows(self, batch: PreferencePairs, key: Key) -> list[Tensor]:
        return list(torch.arange(len(batch.labels)).chunk(self.phase.steps_per_epoch))

    def count(self, batch: PreferencePairs) -> Tensor:
        return count(batch, self.config)

    def loss(self, policy: Policy, batch: PreferencePairs, key: Key) -> ObjectiveLoss:
        return loss(policy, batch, self.config, key)

    def passes(self) -> Passes:
        return Passes(frozen=1.0)
