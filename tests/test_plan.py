"""What a plan says must move as a cluster does, sum up, and agree with what torch keeps."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_networks import count_by_hand
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.cli import main
from experiments.recipes.load import load_recipe
from pretrain.model import attention
from pretrain.model.args import ModelArgs
from pretrain.model.attention import AttentionPlan
from pretrain.model.blocks import Context, FusionBlock
from pretrain.model.flavors import flavor
from pretrain.model.plan import clip_shape, plan_model, step_seconds
from pretrain.model.plan_activations import saved_by_block
from pretrain.model.plan_memory import largest_local_batch, memory_parts
from pretrain.model.plan_setup import Setup
from pretrain.plan_schedule import DAY_S, mean_clip_flops, plan_schedule
from pretrain.recipe import PretrainConfig
from pretrain.schedule import StageConfig

ARGS = flavor("nava_6b")
CLIP = clip_shape(ARGS, 145, 704, 1280)
BLOCK = ModelArgs(width=192, num_heads=3, ffn_width=896, num_alignment_blocks=0, num_fusion_blocks=1)
TOKENS, TEXT = 512, 32


@pytest.fixture(autouse=True)
def _quick_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    count_by_hand(monkeypatch)


def total(**setup: object) -> float:
    return sum(memory_parts(ARGS, CLIP, Setup(**setup)).values())  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    gpus=st.sampled_from([1, 8, 64, 128]),
    batch=st.integers(0, 8),
    context=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["none", "selective", "full"]),
)
def test_memory_falls_with_gpus_and_context_and_rises_with_the_batch(
    gpus: int, batch: int, context: int, mode: str
) -> None:
    gpus *= context
    here = total(gpus=gpus, context=context, checkpointing=mode, local_batch=batch)
    assert total(gpus=2 * gpus, context=context, checkpointing=mode, local_batch=batch) < here
    assert total(gpus=gpus, context=context, checkpointing=mode, local_batch=batch + 1) > here
    assert total(
        gpus=2 * gpus, replicas=2, context=context, checkpointing=mode, local_batch=batch
    ) == pytest.approx(here)
    if batch:
        if (
            mode != "selective" or context > 1
        ):  # sharing at all costs selective checkpointing the exchanges it keeps
            assert total(gpus=2 * gpus, context=2 * context, checkpointing=mode, local_batch=batch) < here
        modes = [
            total(gpus=gpus, context=context, checkpointing=each, local_batch=batch)
            for each in ("full", "selective", "none")
        ]
        assert modes == sorted(modes)


@settings(max_examples=40, deadline=None)
@given(
    limit_gb=st.floats(20, 400),
    gpus=st.sampled_from([8, 128]),
    mode=st.sampled_from(["none", "selective", "full"]),
)
def test_the_largest_batch_fits_and_one_more_does_not(limit_gb: float, gpus: int, mode: str) -> None:
    best = largest_local_batch(ARGS, CLIP, Setup(gpus=gpus, checkpointing=mode), limit_gb * 1e9)  # type: ignore[arg-type]
    assert total(gpus=gpus, checkpointing=mode, local_batch=best + 1) > limit_gb * 1e9
    assert best == 0 or total(gpus=gpus, checkpointing=mode, local_batch=best) <= limit_gb * 1e9


def test_parts_sum_to_the_total_and_states_are_those_of_the_issue() -> None:
    parts = plan_model("nava_6b", gpus=128)["memory_per_gpu_gib"]
    assert sum(size for name, size in parts.items() if name != "total") == pytest.approx(
        parts["total"], abs=0.01
    )
    one = memory_parts(ARGS, CLIP, Setup())
    states = sum(one[name] for name in ("parameters", "gradients", "optimizer"))
    assert states / 2**30 == pytest.approx(93.8, abs=0.1)  # 94 GiB of fp32 states without the EMA
    without = memory_parts(ARGS, CLIP, Setup(ema=False))
    assert without["ema"] == 0 and one["ema"] == one["parameters"]
    assert sum(one.values()) - sum(without.values()) == pytest.approx(one["ema"])


@pytest.mark.parametrize(
    ("given_setup", "message"),
    [
        ({"gpus": 0}, "gpus must be at least 1"),
        ({"gpus": 8, "replicas": 3}, "8 gpus do not divide into 3 replicas x 1"),
        ({"gpus": 8, "replicas": 2, "context": 8}, "do not divide"),
        ({"gpus": 10, "context": 5}, "5 does not divide the model's 24 heads"),
        ({"height": 700}, "multiple of 32"),
        ({"checkpointing": "some"}, "none, selective or full"),
        ({"local_batch": -1}, "local_batch"),
    ],
)
def test_what_cannot_be_is_refused(given_setup: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_model("nava_6b", **given_setup)


class Alive(TorchDispatchMode):
    """Knows every storage that operations made and how many bytes of them are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                self.made[storage.cdata] = (storage, tensor.untyped_storage().nbytes())
        return out

    def held(self) -> int:
        return sum(size for storage, size in self.made.values() if not storage.expired())


def block_and_inputs() -> tuple[FusionBlock, tuple]:
    block = FusionBlock(BLOCK).to(torch.bfloat16)
    x = torch.randn(1, TOKENS, BLOCK.width, dtype=torch.bfloat16, requires_grad=True)
    modulation = torch.randn(6, 1, 1, 1, BLOCK.width, requires_grad=True)
    freqs_cis = torch.ones(TOKENS, 1, BLOCK.head_dim // 2, dtype=torch.complex64)
    context = Context(torch.randn(1, TEXT, BLOCK.width, dtype=torch.bfloat16), None, None)
    return block, (x, (modulation,), freqs_cis, AttentionPlan(TOKENS, 0, apart=False, mask=None), context)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and norms by the kernels that keep what a GPU's keep."""
    kernel = lambda q, k, v, mask: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # noqa: E731
    monkeypatch.setattr(attention, "scaled_attention", kernel)


def test_a_block_saves_what_the_formula_says(flash: None) -> None:
    block, given_inputs = block_and_inputs()
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()} | {
        given_inputs[4].tokens.data_ptr()
    }
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (pointer := tensor.untyped_storage().data_ptr()) not in own:
            saved[pointer] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        block(*given_inputs)
    assert sum(saved.values()) == pytest.approx(saved_by_block(BLOCK, TOKENS, TEXT), rel=0.15)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_blocks_hold_what_the_formula_says(mode: str, flash: None) -> None:
    blocks = [block_and_inputs()[0] for _ in range(4)]
    if mode == "full":
        blocks = [checkpoint_wrapper(block, preserve_rng_state=False) for block in blocks]
    _, (x, *others) = block_and_inputs()
    with Alive() as alive:
        for block in blocks:
            x = block(x, *others)
    gc.collect()
    expected = (
        4 * saved_by_block(BLOCK, TOKENS, TEXT) if mode == "none" else 5 * TOKENS * BLOCK.width * 2
    )  # inputs and the answer
    weights = sum(
        p.untyped_storage().nbytes() for block in blocks for p in block.parameters() if p.ndim > 1
    )  # seen transposed
    assert alive.held() - weights == pytest.approx(expected, rel=0.15)
    x.sum().backward()


def config(**stage: object) -> PretrainConfig:
    return PretrainConfig(flavor="nava_6b", stages={"stage1": StageConfig(**stage)}, global_batch_size=512)  # type: ignore[arg-type]


def test_days_follow_from_flops_and_audio_alone_is_cheap() -> None:
    joint = config(steps=1000, tasks={"T2AV": 1.0}, sets={"paired": 1.0})
    mixed = config(steps=1000, tasks={"T2AV": 1.0, "T2A": 3.0})
    found, quarter = (plan_schedule(each, CLIP, 128, 0.4, 989.0) for each in (joint, mixed))
    flops = 512 * 2.0569e15
    assert found["joint_step_seconds"] == pytest.approx(flops / (128 * 989e12 * 0.4), rel=1e-3)
    assert found["total"]["days"] == pytest.approx(1000 * found["joint_step_seconds"] / DAY_S)
    assert found["tokens_per_s"] == pytest.approx(32_711 * 512 / found["joint_step_seconds"])
    assert 0.25 < quarter["total"]["days"] / found["total"]["days"] < 0.26
    factor = config(tasks={"T2A": 1.0}, audio_only_batch_factor=4)
    plain = config(tasks={"T2A": 1.0})
    costs = [mean_clip_flops(each, each.stage("stage1"), CLIP) for each in (factor, plain)]
    assert costs[0] == 4 * costs[1]


@pytest.mark.parametrize(("mfu", "peak"), [(0.0, 989.0), (1.5, 989.0), (0.4, 0.0), (float("nan"), 1.0)])
def test_a_share_of_the_peak_is_a_share(mfu: float, peak: float) -> None:
    with pytest.raises(ValueError, match="mfu"):
        step_seconds(1e15, 8, mfu, peak)


def test_the_verb_prints_a_page_and_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "nava_6b", "--gpus", "128", "--frames", "145", "--height", "704", "--width", "1280"]
    assert main(asked) == 0
    page = capsys.readouterr().out
    for words in (
        "32,560 video + 151 audio",
        "activations kept",
        "141 GB",
        "Assumptions:",
        "70,000",
        "not measured",
    ):
        assert words in page
    assert main([*asked, "--json", "--context", "2", "--checkpointing", "selective"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["time"]["total"]["steps"] == 70_000 and found["setup"]["context"] == 2
    assert found["params_met_per_video_token"] == 4_342_284_288


def test_a_recipe_is_planned_as_it_trains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def planned(*asked: str) -> tuple[dict, list[int]]:
        assert main(["plan", *asked, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return found["tokens_per_clip"], [stage["steps"] for stage in found["time"]["stages"].values()]

    monkeypatch.chdir(tmp_path)
    small = clip_shape(flavor("mini"), 25, 64, 64)
    tokens = {"video": small.video, "audio": small.audio, "total": small.video + small.audio}
    steps = [stage.steps for stage in load_recipe("mini").pretrain.stages.values()]
    assert planned("mini") == (tokens, steps)
    Path("params.yaml").write_text("recipe: mini\npretrain: {stages: {stage1: {steps: 7}}}\n")
    assert planned("mini") == (tokens, [7, *steps[1:]])
    assert planned("mini", "--set", "pretrain.stages.stage1.steps=8")[1] == [8, *steps[1:]]
    assert planned("mini", "--frames", "49", "--set", "generate.num_frames=97")[0]["video"] == 13 * 4
    assert planned("nava_6b") == (
        {"video": CLIP.video, "audio": CLIP.audio, "total": CLIP.video + CLIP.audio},
        [35_000, 25_000, 10_000],
    )


def test_the_verb_refuses_a_setting_of_a_flavor_and_an_unknown_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for asked, answer in (
        (["nava_7b_split", "--set", "a=1"], "is a flavor"),
        (["nava_6", "--gpus", "1"], "did you mean 'nava_6b'"),
    ):
        with pytest.raises(SystemExit):
            main(["plan", *asked])
        assert answer in capsys.readouterr().err


@pytest.mark.distributed
def test_a_dry_run_cuts_gathers_steps_and_averages(capsys: pytest.CaptureFixture[str]) -> None:
    """16 simulated ranks: 2 replicas of 8 shards, 2 ranks to a clip."""
    asked = ["plan", "debug", "--gpus", "16", "--replicas", "2", "--context", "2", "--dry-run"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["dry_run"]
    whole = found["parameters_whole"]
    assert (
        whole == plan_model("debug")["params_total"]
        and whole / 8 <= found["parameters_here"] < whole / 8 * 1.5
    )
    assert found["tensors"] == found["tensors_with_gradient"] == found["tensors_stepped"]
    assert found["ema_updates"] == found["rows_logged"] == 1
    with pytest.raises(SystemExit):
        main([*asked, "--gpus", "10"])
    assert "do not divide" in capsys.readouterr().err


def test_smaller_clips_need_less() -> None:
    shorter = replace(CLIP, video=CLIP.video // 2)
    assert sum(memory_parts(ARGS, shorter, Setup()).values()) < sum(
        memory_parts(ARGS, CLIP, Setup()).values()
    )


@pytest.mark.parametrize(
    ("name", "context", "message"),
    [
        ("nava_6b", 24, "22 x 40 tokens does not split over 24"),
        ("nava_6b", 7, "24 heads"),
        ("dual_tower", 2, "does not split its tokens"),
    ],
)
def test_a_context_degree_that_training_refuses_is_not_planned(name: str, context: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_model(name, context, context=context)
