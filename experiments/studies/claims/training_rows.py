"""Rows that train: each design choice of the paper against the recipe without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from experiments.studies.claims.config import ClaimsConfig
from experiments.studies.claims.registry import AS_RECIPE, Claim, ClaimArm, ClaimCell, Contrast, RecipeChange
from pretrain.flow.guidance import NO_GUIDANCE
from pretrain.recipe import PretrainConfig
from pretrain.schedule import StageConfig
from pretrain.types import Task

RECIPE = AS_RECIPE
VIDEO_STAGE, VIDEO_STEPS_SHARE = "video", 0.5  # the model to start from: T2V for half of the recipe's steps
SYNC, WORDS, VOICE, NEAREST = (
    "sync_judge",
    "wer_pocketsphinx_judge",
    "sim_resemblyzer",
    "voice_accuracy_resemblyzer",
)


def mixed_from_start(config: PretrainConfig) -> PretrainConfig:
    """Every stage with the whole training's mix of tasks and sets; steps and learning rates stay."""
    stages = config.stages.values()
    tasks = _weighed((stage.tasks, stage.steps) for stage in stages)
    heard = [(stage.audio_sets, stage.steps * _share(stage, Task.T2A)) for stage in stages]
    seen = [(stage.sets, stage.steps * (1 - _share(stage, Task.T2A))) for stage in stages]
    changed = {
        name: replace(stage, tasks=tasks, sets=_weighed(seen), audio_sets=_weighed(heard))
        for name, stage in config.stages.items()
    }
    return replace(config, stages=changed)


def audio_first_alone(config: PretrainConfig) -> PretrainConfig:
    """The second stage's mix and data to the end: no curated stage."""
    names = list(config.stages)
    second = config.stages[names[1]]
    data = {"tasks": second.tasks, "sets": second.sets, "audio_sets": second.audio_sets}
    later = {name: replace(config.stages[name], **data) for name in names[2:]}
    return replace(config, stages={**config.stages, **later})


def from_video_model(config: PretrainConfig) -> PretrainConfig:
    """Starts from a model of pictures alone, trained on the first stage's pairs without their sound."""
    first = next(iter(config.stages.values()))
    steps = round(VIDEO_STEPS_SHARE * sum(stage.steps for stage in config.stages.values()))
    before = replace(first, name=VIDEO_STAGE, steps=max(1, steps), tasks={Task.T2V.value: 1.0}, audio_sets={})
    return replace(config, stages={VIDEO_STAGE: before, **config.stages})


def of_flavor(name: str) -> RecipeChange:
    return lambda config: replace(config, flavor=name)


def with_dropout(**probabilities: float) -> RecipeChange:
    """The recipe with other probabilities of `objective.dropout`."""

    def change(config: PretrainConfig) -> PretrainConfig:
        dropout = replace(config.objective.dropout, **probabilities)
        return replace(config, objective=replace(config.objective, dropout=dropout))

    return change


SHARES = {"fused": "blocks_0of6", "1/6": "blocks_1of6", "1/3": "blocks_2of6", "1/2": "blocks_3of6"}
SHARES |= {"aligned": "blocks_6of6"}
ARMS: Mapping[str, ClaimArm] = {
    RECIPE: ClaimArm(),
    "mixed": ClaimArm(mixed_from_start),
    "audio_first": ClaimArm(audio_first_alone),
    **{name: ClaimArm(of_flavor(name)) for name in SHARES.values()},
    **{
        f"{name}_own_rate": ClaimArm(of_flavor(found), own_rate=True)
        for name, found in (("nava", "mini"), ("dual_tower", "dual_tower"), ("unified", "unified"))
    },
    "split": ClaimArm(of_flavor("mini_split")),
    "plain_rope": ClaimArm(of_flavor("mini_plain_rope")),
    "unmasked": ClaimArm(with_dropout(modality_mask=0.0)),
    "timbre_replaces": ClaimArm(of_flavor("mini_timbre_replaces")),
    "timbre_never_dropped": ClaimArm(with_dropout(timbre_kept=1.0)),
    "timbre_half_dropped": ClaimArm(with_dropout(timbre_kept=0.5)),
    "from_video": ClaimArm(from_video_model, beyond_budget=(VIDEO_STAGE,)),
}
SIZE = "mini"  # the flavor of which the arms with a flavor of their own are variants
EQUAL = "equal training FLOPs"
ALIGNED = replace(NO_GUIDANCE, align_video=2.0, align_audio=2.0)
VOICED = replace(NO_GUIDANCE, timbre_audio=3.0)


def training_rows(config: ClaimsConfig, recipe: PretrainConfig) -> dict[str, Claim]:
    """Every row that trains, by name."""
    dropout = recipe.objective.dropout
    length = f"{config.steps_factor:g} of the recipe's steps and {config.batch_factor:g} of its batch"
    return {
        **_schedule(),
        **_blocks(),
        **_paradigms(length),
        "rotary": _rotary(),
        "masking": _masking(dropout.modality_mask),
        "timbre_form": _timbre_form(),
        "timbre_dropped": _timbre_dropped(dropout.timbre_kept),
        "warm_start": _warm_start(),
    }


def _row(says: str, where: str, asked: str, measure: str, *pairs: tuple[str, str], flavor: str = "") -> Claim:
    """A claim of arms that are sampled as the recipe says; the first pair decides."""
    contrasts = tuple(
        Contrast(f"{ours} against {theirs}", (ours, AS_RECIPE), (theirs, AS_RECIPE)) for ours, theirs in pairs
    )
    arms = {name: ARMS[name] for pair in pairs for name in pair}
    return Claim(says, where, f"{asked}, {EQUAL}", measure, contrasts, arms, flavor=flavor)


def _schedule() -> dict[str, Claim]:
    where = "three stages (arXiv 2605.30073)"
    rows = {
        "schedule_mixed": _row(
            "Three stages teach more than the mix of all from the start",
            where,
            "the recipe's stages against their mean mix in every step",
            WORDS,
            (RECIPE, "mixed"),
        ),
        "schedule_audio_first": _row(
            "The curated third stage adds to sound first, then pairs",
            where,
            "the recipe's stages against the second one's mix to the end",
            WORDS,
            (RECIPE, "audio_first"),
        ),
    }
    return {name: replace(row, num_stages=3) for name, row in rows.items()}


def _blocks() -> dict[str, Claim]:
    where, ours = "Align-then-Fuse (arXiv 2605.30073)", SHARES["1/3"]
    asked = "six blocks of width 128, equal parameters within 1 %, the width of the FFN makes up"
    return {
        "blocks_fused": _row(
            "Alignment blocks before fusion blocks: better than fusion alone",
            where,
            asked,
            SYNC,
            (ours, SHARES["fused"]),
            flavor=SIZE,
        ),
        "blocks_aligned": _row(
            "Fusion blocks after alignment blocks: better than alignment alone",
            where,
            asked,
            SYNC,
            (ours, SHARES["aligned"]),
            flavor=SIZE,
        ),
        "blocks_share": _row(
            "A third of the blocks aligns: better than a sixth (and than a half)",
            where,
            asked,
            SYNC,
            (ours, SHARES["1/6"]),
            (ours, SHARES["1/2"]),
            flavor=SIZE,
        ),
    }


def _paradigms(length: str) -> dict[str, Claim]:
    split = _row(
        "Two alignment blocks with FFNs of their own, then one fusion block: nearer to a dual tower",
        "not in arXiv 2605.30073: what could close a lead of the dual tower",
        "as many parameters as the dual tower, against the recipe at its rates (and the tower at its best)",
        SYNC,
        ("split", RECIPE),
        ("split", "dual_tower_own_rate"),
        flavor=SIZE,
    )
    rows = {
        f"paradigm_{other}": _row(
            f"Native alignment in one transformer: better than {'a ' if 'dual' in other else ''}"
            f"{other.replace('_', ' ')}{'' if 'dual' in other else ' context'}",
            "the three paradigms (arXiv 2605.30073)",
            f"{length}, each at its best of the learning rates tried",
            SYNC,
            ("nava_own_rate", f"{other}_own_rate"),
            flavor=SIZE,
        )
        for other in ("dual_tower", "unified")
    }
    return {**rows, "paradigm_split": split}


def _rotary() -> Claim:
    return _row(
        "Rate-aware rotary positions keep lips and sound together",
        "RoPE (arXiv 2605.30073)",
        "audio token p at 0.24 p of video time against p",
        SYNC,
        (RECIPE, "plain_rope"),
        flavor=SIZE,
    )


def _masking(share: float) -> Claim:
    with_, without = (RECIPE, "align 2"), ("unmasked", "align 2")
    plain: tuple[ClaimCell, ClaimCell] = (RECIPE, "no guidance"), ("unmasked", "no guidance")
    return Claim(
        "Cross-modality masking in training makes alignment guidance work",
        "dropout for guidance (arXiv 2605.30073)",
        f"masked in {share:g} of the samples against never, both sampled with alignment guidance of 2, "
        f"{EQUAL}",
        SYNC,
        (Contrast("guided", with_, without), Contrast("not guided", *plain)),
        {name: ARMS[name] for name in (RECIPE, "unmasked")},
        {"align 2": ALIGNED, "no guidance": NO_GUIDANCE},
    )


def _timbre_form() -> Claim:
    form: tuple[ClaimCell, ClaimCell] = ("timbre_replaces", AS_RECIPE), (RECIPE, AS_RECIPE)
    return Claim(
        "A timbre token in the place of its text binds a voice to its span",
        "timbre in context (arXiv 2605.30073)",
        "the published form (it replaces the text's state) against ours (it is added), two speakers in one "
        f"prompt, {EQUAL}",
        NEAREST,
        (Contrast("replaces against added", *form),),
        {name: ARMS[name] for name in (RECIPE, "timbre_replaces")},
        prompts="pretrain_dialogue",
        flavor=SIZE,
    )


def _timbre_dropped(kept: float) -> Claim:
    return Claim(
        f"Dropping the reference in {1 - kept:.3g} of the samples serves timbre guidance",
        "timbre in context (arXiv 2605.30073)",
        f"kept in {kept:g} against always (and half) of the samples that have one (TI2AV never does, so that "
        "every arm also trains without); sampled with timbre guidance of 3, two speakers in one prompt, "
        f"{EQUAL}",
        VOICE,
        tuple(
            Contrast(f"{kept:g} against {about}", (RECIPE, "timbre 3"), (arm, "timbre 3"))
            for arm, about in (("timbre_never_dropped", "1"), ("timbre_half_dropped", "0.5"))
        ),
        {name: ARMS[name] for name in (RECIPE, "timbre_never_dropped", "timbre_half_dropped")},
        {"timbre 3": VOICED},
        "pretrain_dialogue",
    )


def _warm_start() -> Claim:
    ours: ClaimCell = ("from_video", AS_RECIPE)
    return Claim(
        "A start from a video model gives better pictures in the end",
        "warm start (arXiv 2605.30073)",
        f"after a model of pictures alone ({VIDEO_STEPS_SHARE:g} of the recipe's steps more, beyond equal "
        "FLOPs) against from scratch, by the loss of T2V on the validation clips; what is forgotten: that "
        "loss at the end against where it started from",
        "validation/T2V/video",
        (
            Contrast("from a video model against from scratch", ours, (RECIPE, AS_RECIPE)),
            Contrast("at the end against the video model", ours, ours, after=VIDEO_STAGE),
        ),
        {name: ARMS[name] for name in ("from_video", RECIPE)},
    )


def _share(stage: StageConfig, task: Task) -> float:
    return stage.tasks.get(task.value, 0.0) / sum(stage.tasks.values())


def _weighed(parts: Iterable[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Mean of the mixes, each normalised, weighed by its steps; {} where nothing has weight."""
    found: dict[str, float] = {}
    for weights, steps in parts:
        whole = sum(weights.values())
        for name, weight in weights.items():
            found[name] = found.get(name, 0.0) + steps * weight / whole
    total = sum(found.values())
    return {name: round(weight / total, 9) for name, weight in found.items() if weight > 0}
