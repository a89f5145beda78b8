"""A recipe: everything one run is made with, as a tree of frozen dataclasses that live beside the code they
configure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from experiments.pipeline.curate_prompts import PromptChoiceConfig
from experiments.pipeline.syncnet import SyncFitConfig
from experiments.pipeline.votes import VotesConfig
from experiments.preparation.config import PrepareConfig
from experiments.report.evaluate import EvaluateConfig
from experiments.runs.trackers import TrackingConfig
from experiments.scoring.reward_files import RewardFiles
from experiments.scoring.sets import ScoreConfig
from experiments.studies.claims.config import ClaimsConfig
from experiments.studies.objectives.config import ObjectivesConfig
from experiments.studies.paradigms.config import StudyConfig
from finetune.make_rollouts import RolloutsConfig
from finetune.recipe import AlignConfig
from finetune.sft.config import FinetuneConfig
from orchestration.config import RayConfig
from pretrain.codecs.fit import CodecConfig
from pretrain.data.corpus.build import CorpusConfig
from pretrain.data.curate import CurateConfig
from pretrain.data.encoding.config import EncodeConfig
from pretrain.generation.config import GenerateConfig
from pretrain.recipe import PretrainConfig
from rewards.catalog import check_names
from rewards.guardrails import GuardrailLimits
from rewards.options import fill


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One section per pipeline stage; `params.yaml` and `--set` override fields of it by their dotted name.

    Raises ValueError for the name of a reward or guardrail that there is not, with its place in the list.
    """

    name: str
    prepare: PrepareConfig = field(default_factory=PrepareConfig)  # of `nava prepare`; no stage
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    syncnet: SyncFitConfig = field(default_factory=SyncFitConfig)
    rollout: RolloutsConfig = field(default_factory=RolloutsConfig)
    curate_prompts: PromptChoiceConfig = field(default_factory=PromptChoiceConfig)
    votes: VotesConfig = field(default_factory=VotesConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    reward_files: RewardFiles = field(default_factory=RewardFiles)  # of published rewards; no stage
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)  # of `nava finetune`; no stage
    ray: RayConfig = field(default_factory=RayConfig)  # of `nava align --ray`
    score: ScoreConfig = field(default_factory=ScoreConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)  # of every run; no number depends on it
    claims: ClaimsConfig = field(default_factory=ClaimsConfig)  # of `nava study claims`
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)  # of `nava study objectives`

    def __post_init__(self) -> None:
        rubric = self.align.rubric
        lists = {"score.rewards": self.score.rewards, "score.align_judges": self.score.align_judges}
        lists |= {"align.rubric.watched": rubric.watched}
        lists |= {f"ray.pools.{name}.rewards": pool.rewards for name, pool in self.ray.pools.items()}
        named = {
            f"{where}[{index}]": name for where, names in lists.items() for index, name in enumerate(names)
        }
        for part in ("video", "audio", "sync"):
            named |= {f"align.rubric.{part}.{name}": name for name in getattr(rubric, part)}
        named |= {f"align.reward_options.{name}": name for name in self.align.reward_options}
        for where, name in named.items():
            try:
                check_names([name])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        fill(GuardrailLimits, self.align.guardrails, "align.guardrails")

    @property
    def alignment(self) -> AlignConfig:
        """The `align` section for a model that is used with the sampler of `generate`."""
        return replace(self.align, deployed=self.generate.sampler)
