"""Settings with which a training or a generation would end well and be of no use are refused in one line."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import cli
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.pipeline import pretrain as pretrain_stage
from experiments.recipes.load import load_recipe
from finetune.objectives.gsb_dpo import AxisWeights
from finetune.objectives.nft import NftConfig
from finetune.recipe import AlignConfig
from pretrain.config import BELOW_ONE, FINITE, NOT_NEGATIVE, POSITIVE, SHARE, Bounds, check_bounds
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.path import LevelConfig
from pretrain.recipe import OptimizerConfig
from pretrain.sampling import SamplerConfig
from pretrain.schedule import StageConfig

REFUSED = {
    "pretrain.optimizer.grad_clip=0": "grad_clip is the largest norm of a gradient and must be above 0",
    "pretrain.optimizer.grad_clip=-1": "must be above 0, got -1",
    "pretrain.optimizer.beta1=1": "optimizer.beta1 must be at least 0 and below 1, got 1",
    "pretrain.optimizer.beta2=-0.1": "optimizer.beta2 must be at least 0 and below 1, got -0.1",
    "pretrain.optimizer.eps=0": "optimizer.eps must be above 0, got 0",
    "pretrain.optimizer.weight_decay=-0.1": "optimizer.weight_decay must be at least 0, got -0.1",
    "pretrain.objective.audio_weight=-1": "objective.audio_weight must be at least 0, got -1",
    "pretrain.objective={video_weight: 0, audio_weight: 0}": "train nothing; raise the weight",
    "pretrain.objective.levels.shift=-1": "levels.shift must be above 0, got -1",
    "pretrain.objective.dropout.text=1.5": "dropout.text is a probability, got 1.5",
    "pretrain.stages.stage1.lr=-1": "lr must be > 0",
    "pretrain.ema_decay=1": "ema_decay must be at least 0 and below 1, got 1",
    "pretrain.validate_every=-1": "validate_every must be at least 0, got -1",
    "pretrain.validation_samples=-3": "validation_samples must be at least 0, got -3",
    "pretrain.local_batch_size=-1": "local_batch_size must be at least 0, got -1",
    "pretrain.policy.spike_factor=-1": "policy.spike_factor must be at least 0, got -1",
    "pretrain.policy.max_skips_in_a_row=-1": "policy.max_skips_in_a_row must be at least 0, got -1",
    "pretrain.checkpoint.keep_every=-1": "checkpoint.keep_every must be at least 0, got -1",
    "pretrain.checkpoint.interval=0": "checkpoint.interval must be at least 1, got 0",
    "finetune.optimizer.grad_clip=0": "for no clipping set a very large number",
    "finetune.objective.audio_weight=-1": "objective.audio_weight must be at least 0, got -1",
    "finetune.objective={video_weight: 0, audio_weight: 0}": "train nothing",
    "finetune.validate_every=-1": "validate_every must be at least 0, got -1",
    "finetune.lora.alpha=-1": "an alpha above 0",
    "align.grad_clip=0": "grad_clip is the largest norm of a gradient and must be above 0",
    "align.weight_decay=-1": "weight_decay must be at least 0, got -1",
    "align.samples=-1": "samples must be at least 0, got -1",
    "align.ema_decay=1": "ema_decay must be at least 0 and below 1, got 1",
    "align.nft.lr=-1": "lr must be above 0, got -1",
    "align.nft.clips_per_prompt=0": "clips_per_prompt must be at least 1, got 0",
    "align.nft.sampler.shift=0": "sampler.shift must be above 0, got 0",
    "align.nft.objective.beta=0": "nft: beta must be above 0, got 0",
    "align.nft.objective={video_weight: 0, audio_weight: 0}": "both 0; raise one, or nothing is learnt",
    "align.nft.objective.levels.logit_std=0": "levels.logit_std must be above 0, got 0",
    "align.awm.objective.audio_weight=-1": "awm: audio_weight must be at least 0, got -1",
    "align.rwr.objective.temperature=0": "rwr: temperature must be above 0, got 0",
    "align.grpo.objective.video_share=2": "grpo: video_share must be at least 0 and at most 1, got 2",
    "align.rubric.advantage.eps=-1": "advantage.eps must be at least 0, got -1",
    "generate.sampler.steps=0": "sampler.steps must be at least 1, got 0",
    "generate.sampler.shift=-2": "sampler.shift must be above 0, got -2",
    "rollout.sampler.shift=0": "sampler.shift must be above 0, got 0",
    "codec.video_whitening=2": "video_whitening must be at least 0 and at most 1, got 2",
    "encode.max_bad_fraction=5": "max_bad_fraction must be at least 0 and at most 1, got 5",
    "syncnet.train.temperature=0": "temperature must be above 0, got 0",
}
TAKEN = (
    "pretrain.optimizer.grad_clip=1e9",
    "pretrain.optimizer.beta1=0",
    "pretrain.ema_decay=0",
    "pretrain.validate_every=0",
    "pretrain.validation_samples=0",
    "pretrain.policy.spike_factor=0",
    "pretrain.objective.video_weight=0",
    "pretrain.stages.stage1.steps=1",  # a trial, whose warm-up is longer
    "finetune.objective.audio_weight=0",
    "align.grad_clip=1e9",
    "align.samples=0",
    "align.nft.objective.video_weight=0",
    "generate.sampler.guidance.text_audio=-1",
)


@pytest.mark.parametrize("setting", REFUSED)
def test_what_would_train_or_make_nothing_of_use_is_refused(setting):
    with pytest.raises(ValueError) as refusal:
        load_recipe("mini", None, [setting])
    assert REFUSED[setting] in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("setting", TAKEN)
def test_what_somebody_may_want_is_taken(setting):
    assert load_recipe("mini", None, [setting])


def test_the_command_says_it_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["pretrain", "mini", "--set", "pretrain.optimizer.grad_clip=0"])
    assert ended.value.code == 2
    refusal = capsys.readouterr().err.strip()
    assert "grad_clip" in refusal and "1e9" in refusal and "\n" not in refusal
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "made",
    [
        lambda number: OptimizerConfig(eps=number),
        lambda number: StageConfig(lr=number),
        lambda number: LevelConfig(logit_mean=number),
        lambda number: GuidanceScales(text_audio=number),
        lambda number: SamplerConfig(shift=number),
        lambda number: NftConfig(beta=number),
        lambda number: AxisWeights(sync=number),
        lambda number: AlignConfig(weight_decay=number),
    ],
)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_recipes_in_python_have_finite_numbers_too(made, number):
    with pytest.raises(ValueError):
        made(number)


def test_infinity_clips_no_gradient():
    assert OptimizerConfig(grad_clip=math.inf).grad_clip == AlignConfig(grad_clip=math.inf).grad_clip
    with pytest.raises(ValueError, match="got nan"):
        OptimizerConfig(grad_clip=math.nan)


@dataclasses.dataclass(frozen=True)
class _Number:
    value: float


@given(st.floats(allow_nan=True))
def test_bounds_hold_what_their_text_says(number):
    said = {
        FINITE: math.isfinite(number),
        NOT_NEGATIVE: 0 <= number < math.inf,
        POSITIVE: 0 < number < math.inf,
        SHARE: 0 <= number <= 1,
        BELOW_ONE: 0 <= number < 1,
        Bounds(0, above=True, endless=True): number > 0,
    }
    for bounds, inside in said.items():
        assert (number in bounds) is inside
        if inside:
            check_bounds(_Number(number), {"value": bounds})
        else:
            with pytest.raises(ValueError, match=r"it\.value must be .*, got "):
                check_bounds(_Number(number), {"value": bounds}, "it.")


class _Started(Exception):
    """Training began."""


@pytest.mark.parametrize(("warmup", "said"), [(50, True), (10, False), (0, False)])
def test_a_warmup_longer_than_the_stage_is_said(warmup, said, tmp_path, monkeypatch, capsys):
    def started(*_, **__):
        raise _Started

    monkeypatch.setattr(pretrain_stage, "stage_run_of", lambda *_: None)
    monkeypatch.setattr(pretrain_stage, "train_run", started)
    recipe = load_recipe(
        "mini", None, ["pretrain.stages.stage1.steps=10", f"pretrain.stages.stage1.warmup_steps={warmup}"]
    )
    with pytest.raises(_Started):
        pretrain_stage.run(StageJob(recipe=recipe, layout=Layout(out=Path(tmp_path))), None, "stage1")  # type: ignore[arg-type]
    notice = (
        "note: stage1: warmup_steps 50 is more than its 10 steps: the learning rate rises through all of them"
    )
    assert (notice in capsys.readouterr().out) is said
