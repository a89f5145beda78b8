"""Where a run keeps its files: one folder for what DVC caches, one for the reports a person opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STAGES = (
    "corpus",
    "curate",
    "codec",
    "encode",
    "pretrain_stage1",
    "pretrain_stage2",
    "pretrain_stage3",
    "syncnet",
    "generate",
    "rollout",
    "curate_prompts",
    "votes",
    "align",
    "generate_aligned",
    "score",
    "evaluate",
    "report",
)
PRETRAIN_STAGES = ("stage1", "stage2", "stage3")
CHOSEN = "chosen.json"  # in Layout.chosen
PAIRS = "pairs.jsonl"  # in Layout.votes


@dataclass(frozen=True)
class Layout:
    """Paths of a run, relative to the folder a command is started in (the repository root for DVC)."""

    out: Path = Path("out")
    reports: Path = Path("reports")

    @property
    def corpus(self) -> Path:
        return self.out / "corpus"

    @property
    def curated(self) -> Path:
        return self.out / "curated"

    @property
    def codec(self) -> Path:
        return self.out / "codec"

    @property
    def latents(self) -> Path:
        return self.out / "latents"

    @property
    def generated(self) -> Path:
        return self.out / "generated"

    @property
    def syncnet(self) -> Path:
        """The two sync networks: `reward` is optimised for, `judge` only measures."""
        return self.out / "syncnet"

    @property
    def scores(self) -> Path:
        return self.out / "scores"

    @property
    def prompts(self) -> Path:
        return self.corpus / "prompts"

    @property
    def tracking(self) -> Path:
        """Spool of runs, one folder each; no DVC output, so sending a run late changes no hash."""
        return self.out / "tracking"

    @property
    def runs(self) -> Path:
        """The last successful run of every stage as JSON; beside the outputs, so that equal outputs keep
        equal hashes."""
        return self.out / "runs"

    @property
    def metrics(self) -> Path:
        return self.reports / "demo.json"

    @property
    def alignment(self) -> Path:
        """Numbers before and after alignment, beside `metrics`."""
        return self.reports / "alignment.json"

    @property
    def rollouts(self) -> Path:
        """Latents of the pretrained model's clips that votes are about."""
        return self.out / "rollouts"

    @property
    def chosen(self) -> Path:
        """chosen.json: the prompts that alignment trains on, and why."""
        return self.out / "chosen"

    @property
    def votes(self) -> Path:
        """votes.jsonl of the simulated panel on `rollouts`, pairs.jsonl for training."""
        return self.out / "votes"

    @property
    def aligned(self) -> Path:
        """Clips of the aligned model, one folder for each prompt set."""
        return self.out / "aligned"

    @property
    def gsb(self) -> Path:
        """votes.jsonl of the simulated panel on clips before and after alignment."""
        return self.out / "gsb"

    @property
    def align(self) -> Path:
        """adapter/ (PEFT), model/ (merged) and what the alignment said on its way."""
        return self.out / "align"

    @property
    def rewriter(self) -> Path:
        """adapter/ (PEFT), model/ (merged) of the tuned prompt rewriter, and its checkpoints; no stage of the
        pipeline."""
        return self.out / "rewriter"

    def pretrain(self, stage: str) -> Path:
        return self.out / "pretrain" / stage

    def model(self, stage: str) -> Path:
        """Exported weights of a pretraining stage: config.json, model.safetensors, ema.safetensors."""
        return self.pretrain(stage) / "model"

    def output_of(self, stage: str) -> Path:
        """The folder or file a pipeline stage makes."""
        if stage.startswith("pretrain_"):
            return self.pretrain(stage.removeprefix("pretrain_"))
        return {
            "corpus": self.corpus,
            "curate": self.curated,
            "codec": self.codec,
            "encode": self.latents,
            "generate": self.generated,
            "syncnet": self.syncnet,
            "rollout": self.rollouts,
            "curate_prompts": self.chosen,
            "votes": self.votes,
            "align": self.align,
            "generate_aligned": self.aligned,
            "score": self.scores,
            "evaluate": self.metrics,
            "report": self.reports / "demo.html",
            "rewriter": self.rewriter,
        }[stage]
