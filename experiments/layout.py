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
# Sets of the first prompts of pretrain_seen, with one modality alone: folder of `generated` -> task and clips
ONE_MODALITY_SETS = {"pretrain_t2a": ("T2A", 48), "pretrain_t2v": ("T2V", 8)}
VOTED_CLIPS = "clips"  # in Layout.votes: the store that a survey's votes are about


class _Below:
    """A path below a folder of the layout."""

    def __init__(self, path: str, folder: str = "out") -> None:
        self.path, self.folder = path, folder

    def __get__(self, layout: Layout, owner: type | None = None) -> Path:
        return getattr(layout, self.folder) / self.path


@dataclass(frozen=True)
class Layout:
    """Paths of a run, relative to the folder a command is started in (the repository root for DVC)."""

    out: Path = Path("out")
    reports: Path = Path("reports")

    corpus = _Below("corpus")
    prompts = _Below("corpus/prompts")
    curated = _Below("curated")
    codec = _Below("codec")
    latents = _Below("latents")
    encoded = _Below("encoded")  # sets of `nava encode --manifest`; no stage
    syncnet = _Below("syncnet")  # two sync networks: `reward` is optimised for, `judge` only measures
    generated = _Below("generated")
    rollouts = _Below("rollouts")  # latents of the pretrained model's clips, to vote on
    chosen = _Below("chosen")  # the curated prompts of alignment
    votes = _Below("votes")  # of a survey, or of simulated raters on `rollouts`, and their preference pairs
    align = _Below("align")  # adapter/ (PEFT), model/ (merged) and the metrics log
    aligned = _Below("aligned")  # clips of the aligned model, a folder for each prompt set
    scores = _Below("scores")
    gsb = _Below("gsb")  # votes of simulated raters on clips before and after alignment
    rewriter = _Below("rewriter")  # adapter/, model/ and checkpoints of the tuned rewriter; no stage
    tracking = _Below("tracking")  # spool of runs, a folder each; no DVC output, so sending changes no hash
    trash = _Below(".trash")  # what had to make room; `nava trash` lists and empties it
    runs = _Below("runs")  # the last finished run of every stage; beside the outputs, so that hashes stay
    metrics = _Below("demo.json", "reports")
    headline = _Below("metrics.json", "reports")  # the numbers of the gates, for `dvc metrics`
    alignment = _Below("alignment.json", "reports")  # before and after alignment

    def pretrain(self, stage: str) -> Path:
        return self.out / "pretrain" / stage

    def model(self, stage: str) -> Path:
        """Exported weights of a pretraining stage: config.json, model.safetensors, ema.safetensors."""
        return self.pretrain(stage) / "model"

    def output_of(self, stage: str) -> Path:
        """The folder or file a pipeline stage makes."""
        if stage.startswith("pretrain_"):
            return self.pretrain(stage.removeprefix("pretrain_"))
        names = {
            "curate": "curated",
            "encode": "latents",
            "generate": "generated",
            "rollout": "rollouts",
            "curate_prompts": "chosen",
            "generate_aligned": "aligned",
            "score": "scores",
            "evaluate": "metrics",
        }
        return self.reports / "demo.html" if stage == "report" else getattr(self, names.get(stage, stage))
