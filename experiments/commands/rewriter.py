"""`nava rewriter`: tune the language model that rewrites prompts, by rewards of its rewrites or by votes on
them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.gsb import Axis, VotesFile, warn_of
from experiments.commands.options import AnywayFlag, AsideFlag, recipe_for
from experiments.layout import Layout

if TYPE_CHECKING:
    from finetune.rewriter.rewards import ClipScore
    from finetune.rewriter.votes import PairedVotes
    from pretrain.prompt import PromptRow

LanguageModel = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="MODEL", help="folder of a causal language model, safetensors"),
]
Prompts = Annotated[
    Path, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPTS", help="JSONL of short prompts")
]
Tuned = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="set", metavar="KEY=VALUE", help="a field of the tuning, such as steps=200; may be given again"
    ),
]
Resume = Annotated[bool, tyro.conf.arg(help="resume an interrupted run; --no-resume starts over")]
ClipModel = Annotated[
    Path | None,
    tyro.conf.arg(metavar="NAVA_MODEL", help="score clips that this NAVA model makes of the rewrites"),
]
ClipRewards = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="NAME[=WEIGHT]", help="rewards of the catalog, or package.module:Class"),
]
ClipSettings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="REWARD.OPTION=VALUE", help="set an option of a reward of clips; may be given again"
    ),
]
Factory = Annotated[
    str,
    tyro.conf.arg(
        metavar="package.module:factory", help="scores clips instead: factory() -> f(rewrites, rows)"
    ),
]
Rewrites = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="NAME=OUT.jsonl", help="outputs of `nava rewrite` by the names the votes give them"
    ),
]


def grpo(
    model: LanguageModel,
    prompts: Prompts,
    /,
    settings: Tuned = (),
    clips: ClipModel = None,
    codec: Path | None = None,
    rewards: ClipRewards = ("sync_mini",),
    set_reward: ClipSettings = (),
    clip_score: Factory = "",
    recipe: str = "mini",
    out: Path = Path("out"),
    resume: Resume = True,
    resume_anyway: AnywayFlag = False,
    move_aside: AsideFlag = False,
) -> None:
    """Tune a prompt rewriter by rewards of its own rewrites (TRL's GRPO), a LoRA adapter, into OUT/rewriter.

    Rewards: spans (speech kept verbatim), structure and length (the form of `nava rewrite`), and with --clips
    rewards of the catalog on clips generated from the rewrites. Weights, learning rate and the like by --set
    (rewards.spans=3, vllm=URL for a vLLM server that generates). Writes adapter/ (PEFT), model/ (merged) and
    metrics.jsonl; an interrupted run resumes, and one with other settings or inputs is refused by name.
    """
    from experiments.continuing import Wish
    from experiments.rewriter import overridden, tune_tracked
    from experiments.runs.provenance import md5_of
    from finetune.rewriter.config import GrpoTuning
    from finetune.rewriter.language_model import check_folder, folder_digest
    from finetune.rewriter.tune import check_grpo, tune_grpo
    from pretrain.prompt import read_prompts

    config, layout = overridden(GrpoTuning(), settings), Layout(out=out)
    check_folder(model)
    rows = read_prompts(prompts)
    if clips is not None and clip_score:
        raise ValueError("--clips and --clip-score both score clips; give one of them")
    check_grpo(config, len(rows), clips is not None or bool(clip_score))
    score, score_id = _clip_score(
        clips, codec, rewards, set_reward, clip_score, recipe, layout, rows, prompts
    )
    made_of = {"model": folder_digest(model), "prompts": md5_of(prompts), "clip_score": score_id}
    try:
        tune_tracked(
            "grpo",
            config,
            made_of,
            layout,
            Path(),
            Wish(resume, resume_anyway, move_aside),
            lambda tracker: tune_grpo(config, model, rows, layout.rewriter, score, score_id, [tracker]),
            {"nava.parent_model": str(model), "nava.prompts": str(prompts)},
            [model, prompts, *([clips] if clips else [])],
        )
    finally:
        if hasattr(score, "close"):
            score.close()  # type: ignore[union-attr]


def dpo(
    model: LanguageModel,
    votes: VotesFile,
    /,
    rewrites: Rewrites,
    axis: Axis = "overall",
    keep_all_raters: bool = False,
    settings: Tuned = (),
    out: Path = Path("out"),
    resume: Resume = True,
    resume_anyway: AnywayFlag = False,
    move_aside: AsideFlag = False,
) -> None:
    """Tune a prompt rewriter by votes between rewrites of one prompt (TRL's DPO), a LoRA adapter, into
    OUT/rewriter.

    VOTES is the JSONL of `nava gsb`: case_id is a prompt's data_id, left_model and right_model are names
    given by --rewrites. Raters and repeats are treated as there. A preferred rewrite that altered speech
    teaches nothing. Output as of `nava rewriter grpo`.
    """
    from experiments.continuing import Wish
    from experiments.rewriter import overridden, tune_tracked
    from experiments.runs.provenance import md5_of
    from finetune.gsb.raters import check_raters, first_votes, kept_votes
    from finetune.gsb.votes import read_votes
    from finetune.rewriter.config import DpoTuning
    from finetune.rewriter.language_model import check_folder, folder_digest
    from finetune.rewriter.tune import tune_dpo
    from finetune.rewriter.votes import preferred, read_rewrites

    config, layout = overridden(DpoTuning(), settings), Layout(out=out)
    check_folder(model)
    files, found = _named(rewrites), read_votes(votes)
    warn_of(found)
    counted = (
        first_votes(found.votes) if keep_all_raters else kept_votes(found.votes, check_raters(found.votes))
    )
    made = preferred(
        counted, [row for name, path in files.items() for row in read_rewrites(path, name)], axis, votes
    )
    simulated = _told_pairs(made)
    made_of = {
        "model": folder_digest(model),
        "votes": md5_of(votes),
        "axis": axis,
        "keep_all_raters": str(keep_all_raters),
        **{f"rewrites {name}": md5_of(path) for name, path in files.items()},
    }
    tune_tracked(
        "dpo",
        config,
        made_of,
        layout,
        Path(),
        Wish(resume, resume_anyway, move_aside),
        lambda tracker: tune_dpo(config, model, made.pairs, layout.rewriter, [tracker]),
        {"nava.parent_model": str(model), "nava.votes": str(votes), "nava.simulated_pairs": str(simulated)},
        [model, votes, *files.values()],
    )


def _told_pairs(made: PairedVotes) -> int:
    """Says what the votes gave; returns how many of the pairs are from simulated votes."""
    simulated = sum(pair.simulated for pair in made.pairs)
    left_out = ", ".join(f"{count} {reason}" for reason, count in made.left_out.items()) or "none"
    print(f"{len(made.pairs)} pairs, {simulated} of them from SIMULATED votes; left out: {left_out}")
    return simulated


def _clip_score(
    clips: Path | None,
    codec: Path | None,
    rewards: tuple[str, ...],
    settings: tuple[str, ...],
    factory: str,
    recipe: str,
    layout: Layout,
    rows: list[PromptRow],
    prompts: Path,
) -> tuple[ClipScore | None, str]:
    """(what scores clips, what identifies it); (None, "") where nothing does."""
    if factory:
        from pretrain.tracking import build

        return build(factory, {}, "--clip-score"), factory
    if clips is None:
        return None, ""
    from experiments.rewriter_clips import RewriteClips
    from experiments.scoring.config import reward_settings
    from experiments.scoring.options import reward_options
    from rewards.catalog import check_names

    weights = dict(map(_weight, rewards))
    check_names(weights)
    given = reward_settings(settings, list(weights), "--set-reward")
    options = reward_options(list(weights), layout.corpus, layout.syncnet, given=given)
    score = RewriteClips(
        clips, codec or layout.codec, weights, options, recipe_for(recipe, ()).generate, rows, prompts
    )
    return score, score.identity


def _weight(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        weight = float(value) if equals else 1.0
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"--rewards {text}: expected NAME or NAME=WEIGHT with a weight above 0")
    return name, weight


def _named(rewrites: tuple[str, ...]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in rewrites:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise ValueError(f"--rewrites {text}: expected NAME=OUT.jsonl")
        if name in files:
            raise ValueError(f"--rewrites {text}: {name!r} stands twice; a rewriter has one file")
        files[name] = Path(path)
    return files
