"""The alignment part of a recipe: a frozen tree, written as JSON for the ranks and read back strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.advantage import AdvantageConfig, Route
from finetune.lora import LoraConfig
from finetune.objectives.grpo import GrpoConfig
from finetune.objectives.gsb_dpo import GsbDpoConfig
from finetune.objectives.nft import NftConfig, OldSchedule
from finetune.objectives.rwr import RwrConfig
from finetune.sde import Kernel
from pretrain.config import nearest
from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales
from pretrain.recipe import ParallelConfig
from pretrain.sampling import SamplerConfig

ALGORITHMS = ("rwr", "gsb_dpo", "nft", "grpo")
Role = Literal["default", "old"]


def _plain_sampler() -> SamplerConfig:
    return SamplerConfig(solver="euler", steps=16, shift=5.0, guidance=NO_GUIDANCE)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What all algorithms have. A round's optimizer steps are epochs * steps_per_epoch; a step takes an equal
    part of every group. Raises ValueError on numbers that do not go together."""

    rounds: int = 10
    prompts_per_round: int = 24
    clips_per_prompt: int = 8  # K
    epochs: int = 4
    steps_per_epoch: int = 1
    micro_batch: int = 32  # clips per rank and forward pass
    lr: float = 3e-4
    sampler: SamplerConfig = field(default_factory=_plain_sampler)
    rollout_batch: int = 96  # clips per rank and forward pass while sampling

    def __post_init__(self) -> None:
        for name in (
            "rounds",
            "prompts_per_round",
            "clips_per_prompt",
            "epochs",
            "steps_per_epoch",
            "micro_batch",
            "rollout_batch",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        self._check_steps()

    def _check_steps(self) -> None:
        if self.clips_per_prompt % self.steps_per_epoch:
            raise ValueError(
                f"steps_per_epoch {self.steps_per_epoch} must divide clips_per_prompt "
                f"{self.clips_per_prompt}: every step takes an equal "
                "part of every group"
            )

    @property
    def rolls_out_with(self) -> Role:
        return "default"


@dataclass(frozen=True, kw_only=True)
class RwrPhase(Phase):
    """Guided rollouts: without, it distils the blurrier samples of the unguided policy (DESIGN.md, decision
    8).

    Measured on the mini, it falls all the same: what it distils is guided once more when it is evaluated
    (docs/study/objectives.md).
    """

    objective: RwrConfig = field(default_factory=RwrConfig)
    epochs: int = 2
    steps_per_epoch: int = 4
    lr: float = 1e-3
    sampler: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(
            solver="euler",
            steps=16,
            shift=5.0,
            guidance=GuidanceScales(
                text_video=0.0,
                text_audio=2.0,
                align_video=2.0,
                align_audio=0.0,
                timbre_audio=0.0,
                timbre_video=0.0,
            ),
        )
    )


@dataclass(frozen=True, kw_only=True)
class GsbDpoPhase(Phase):
    """No rollouts: a round takes `pairs_per_round` of the given preference pairs. prompts_per_round and
    clips_per_prompt are not read."""

    objective: GsbDpoConfig = field(default_factory=GsbDpoConfig)
    pairs_per_round: int = 96
    tie_shares_from_pairs: bool = True  # False: those of the objective
    steps_per_epoch: int = 4
    lr: float = 3e-4  # 1e-3 learns 309 pairs by heart: nothing held out improves
    micro_batch: int = 16  # pairs

    def _check_steps(self) -> None:
        if self.pairs_per_round < 1 or self.pairs_per_round % self.steps_per_epoch:
            raise ValueError(
                f"steps_per_epoch {self.steps_per_epoch} must divide pairs_per_round {self.pairs_per_round}"
            )


@dataclass(frozen=True, kw_only=True)
class NftPhase(Phase):
    """`old` rolls out and follows `default` once a round.

    max_advantage bounds what a round can change: its loss is least at v_old + A / max_advantage (v* - v_old).
    Measured on the mini: at 5, right for hundreds of rounds, the distance from `old` saturates at the same
    value for lr 1e-3 and 3e-3; ten rounds need 1.
    """

    objective: NftConfig = field(default_factory=lambda: NftConfig(max_advantage=1.0))
    steps_per_epoch: int = 4
    lr: float = 1e-3
    old: OldSchedule = field(default_factory=lambda: OldSchedule(slope=0.1, limit=0.5))

    @property
    def rolls_out_with(self) -> Role:
        return "old"


@dataclass(frozen=True, kw_only=True)
class GrpoPhase(Phase):
    """`window` stochastic steps at the same place for a whole group, among the first `first_steps` of the
    sampler; all others are Euler's."""

    objective: GrpoConfig = field(default_factory=lambda: GrpoConfig(routed=True, reference_weight=1e-3))
    kernel: Kernel = field(default_factory=Kernel)
    window: int = 2
    first_steps: int = 10
    epochs: int = 2
    steps_per_epoch: int = 4
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.window <= self.first_steps <= self.sampler.steps - 1:
            got = f"window {self.window}, first_steps {self.first_steps}, sampler.steps {self.sampler.steps}"
            raise ValueError(
                "grpo: expected 1 <= window <= first_steps < sampler.steps (the last step is "
                f"deterministic), got {got}"
            )
        if self.sampler.solver != "euler" or self.sampler.guidance != NO_GUIDANCE:
            raise ValueError(
                "grpo: rollouts are of Euler steps without guidance, or the ratio is not that of the "
                "trained policy"
            )


@dataclass(frozen=True, kw_only=True)
class RubricConfig:
    """Weights of the rewards by what they speak about; better is higher (a reward that is better when lower
    is turned round)."""

    video: Mapping[str, float] = field(default_factory=dict)
    audio: Mapping[str, float] = field(
        default_factory=lambda: {"intelligibility_pocketsphinx": 1.0, "sim_resemblyzer": 0.25}
    )
    sync: Mapping[str, float] = field(default_factory=lambda: {"sync_mini": 1.0})  # to both modalities
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)

    def __post_init__(self) -> None:
        names = [name for part in (self.video, self.audio, self.sync) for name in part]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"rubric: {sorted(doubled)[0]!r} is under two of video, audio and sync; sync leads to both"
            )
        if not names:
            raise ValueError("rubric: no reward; name one under video, audio or sync")
        self.routes()

    def routes(self) -> dict[str, Route]:
        """Where each reward leads. Raises ValueError on a weight that is not positive."""
        routes = {name: Route(modality="video", weight=weight) for name, weight in self.video.items()}
        routes |= {name: Route(modality="audio", weight=weight) for name, weight in self.audio.items()}
        return routes | {name: Route(modality="both", weight=weight) for name, weight in self.sync.items()}

    def weights(self) -> dict[str, float]:
        """Of each reward, wherever it leads."""
        return {name: route.weight for name, route in self.routes().items()}


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """Early stop on prompts set aside from the training prompts: `prompts` of them are scored every `every`
    rounds, one clip each.

    A phase ends after `patience` scorings without a better rubric total (0 = never), and the run ends with
    the best weights seen.
    """

    prompts: int = 24
    every: int = 2
    patience: int = 0

    def __post_init__(self) -> None:
        if self.prompts < 0 or self.every < 1 or self.patience < 0:
            raise ValueError(
                f"stop: prompts and patience must not be negative and every at least 1, got {self}"
            )
        if self.patience and not self.prompts:
            raise ValueError("stop.patience needs prompts to score; set stop.prompts")


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """All of alignment: `sequence` names the algorithms that run one after another. Raises ValueError where
    parts do not fit."""

    sequence: tuple[str, ...] = ("nft",)
    rwr: RwrPhase = field(default_factory=RwrPhase)
    gsb_dpo: GsbDpoPhase = field(default_factory=GsbDpoPhase)
    nft: NftPhase = field(default_factory=NftPhase)
    grpo: GrpoPhase = field(default_factory=GrpoPhase)
    lora: LoraConfig = field(default_factory=LoraConfig)
    rubric: RubricConfig = field(default_factory=RubricConfig)
    reward_options: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # beside those that the pipeline knows
    guardrails: Mapping[str, float] = field(default_factory=dict)  # limits other than rewards.guardrails' own
    stop: StopConfig = field(default_factory=StopConfig)
    curated_prompts: bool = (
        True  # the pipeline gives the ones that were chosen, False: all that are not set aside
    )
    seed: int = 0
    ema_decay: float = 0.9
    weight_decay: float = 1e-4
    grad_clip: float = 1.0
    mixed_precision: Literal["fp32", "bf16"] = "bf16"
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(shard_blocks=False))
    checkpoint_every: int = 1  # rounds
    keep_last: int = 2
    max_flat_rounds: int = 2  # rounds in a row without any contrast between clips end the run
    max_skips: int = 5  # optimizer steps in a row with a gradient that is not finite end the run
    samples: int = 4  # clips of the first prompts set aside that are logged whenever those are scored
    num_frames: int = 25  # of prompts that do not say
    fps: float = 24.0
    height: int = 64  # pixels
    width: int = 64

    def __post_init__(self) -> None:
        if not self.sequence:
            raise ValueError(f"sequence is empty; name algorithms: {', '.join(ALGORITHMS)}")
        for name in self.sequence:
            if name not in ALGORITHMS:
                raise ValueError(f"sequence: unknown algorithm {name!r}; {nearest(name, ALGORITHMS)}")
        if self.mixed_precision not in ("fp32", "bf16"):
            raise ValueError(f"mixed_precision: expected fp32 or bf16, got {self.mixed_precision!r}")
        if self.parallel.context != 1:
            raise ValueError(
                f"parallel.context {self.parallel.context}: alignment's clips are short and are not split; "
                "set it to 1"
            )
        for name in ("checkpoint_every", "keep_last", "max_flat_rounds", "max_skips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

    @property
    def phases(self) -> tuple[tuple[str, Phase], ...]:
        return tuple((name, getattr(self, name)) for name in self.sequence)

    @property
    def num_rounds(self) -> int:
        return sum(phase.rounds for _, phase in self.phases)

    def check_ranks(self, world_size: int) -> None:
        """Raises ValueError where a phase's groups do not divide over the ranks."""
        for name, phase in self.phases:
            key = "pairs_per_round" if isinstance(phase, GsbDpoPhase) else "prompts_per_round"
            parts = world_size * (phase.steps_per_epoch if isinstance(phase, GsbDpoPhase) else 1)
            if getattr(phase, key) % parts:
                found = f"{name}.{key} {getattr(phase, key)}"
                raise ValueError(
                    f"{found} does not divide into {parts} equal parts ({world_size} ranks); change it"
                )
        if self.stop.prompts % world_size:
            raise ValueError(
                f"stop.prompts {self.stop.prompts} does not divide over {world_size} ranks; change it"
            )
