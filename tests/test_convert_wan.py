"""Converted random Wan weights: the video side alone answers as diffusers' WanTransformer3DModel does,
gradients too."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from convert_cases import TINY, flavor_of, imported, read_all, wan_model, write_checkpoint
from torch import Tensor

from pretrain.convert.account import sizes_of
from pretrain.convert.exporting import ExportConfig, run_export
from pretrain.convert.importing import ImportConfig, plan_import, run_import
from pretrain.convert.layouts import rules
from pretrain.model.checkpoint import load_model
from pretrain.model.initial import drawn
from pretrain.sampling import lower_precision
from pretrain.types import Conditioning, Stream, Velocity

FRAMES, ROWS, COLUMNS = 3, 4, 6  # latents, not square
LEVELS = {
    "one level": torch.tensor([[0.6], [0.3]]),
    "clean first frame": torch.tensor([[0.0, 0.6, 0.6], [0.0, 0.3, 0.3]]),
}


def wan_to_original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names back to the original's, spelled out here and not taken from the layout under test."""
    pairs = {
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "proj_out": "head.head",
        "attn1.": "self_attn.",
        "attn2.": "cross_attn.",
        "to_out.0": "o",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        ".norm2.": ".norm3.",
    }
    renamed = {}
    for key, value in tensors.items():
        key = (
            "head.modulation"
            if key == "scale_shift_table"
            else key.replace("scale_shift_table", "modulation")
        )
        for theirs, original in pairs.items():
            key = key.replace(theirs, original)
        renamed[key] = value
    return renamed


@pytest.fixture(scope="module")
def wan():
    return wan_model()


@pytest.fixture(scope="module", params=["wan", "wan_diffusers"])
def source(request, wan, tmp_path_factory):
    tensors = {key: value.detach().clone() for key, value in wan.state_dict().items()}
    layout: Any = request.param
    named = tensors if layout == "wan_diffusers" else wan_to_original(tensors)
    return layout, write_checkpoint(tmp_path_factory.mktemp(layout), named, shards=3)


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 48, FRAMES, ROWS, COLUMNS, generator=draw), torch.randn(
        2, 7, TINY.text_width, generator=draw
    )


def ours(model, latents: Tensor, text: Tensor, levels: Tensor) -> Tensor:
    everywhere = torch.ones(2, dtype=torch.bool)
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    conditioning = Conditioning(
        text, mask, torch.zeros(2, 0, 192), torch.zeros(2, 0, dtype=torch.int64), everywhere, everywhere
    )
    answer: Velocity = model(Stream(latents, torch.full((2,), FRAMES), levels, 6.0, 6.0), None, conditioning)
    assert answer.video is not None
    return answer.video


def diffusers(model, latents: Tensor, text: Tensor, levels: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(text, (0, 0, 0, 512 - text.shape[1]))
    steps = 1000 * levels
    steps = (
        steps[:, 0] if levels.shape[1] == 1 else steps.repeat_interleave(ROWS * COLUMNS // 4, dim=1)
    )  # [B] or one per token
    return model(latents, steps, padded.to(latents.dtype), return_dict=False)[0]


@pytest.mark.parametrize("levels", LEVELS)
def test_forward_and_gradients_equal_diffusers(levels: str, wan, source, tmp_path) -> None:
    layout, path = source
    model = imported(path, tmp_path / "model", kind="wan2.2")
    weight = torch.randn(2, 48, FRAMES, ROWS, COLUMNS, generator=torch.Generator().manual_seed(5))
    # the reference is diffusers' model in fp64: in cross-attention 505 of 512 keys are alike, its gradients
    # nearly cancel, and in fp32 diffusers' own are off by up to 1e-4 on some processors
    exact = deepcopy(wan).double()
    mine_in = tuple(x.requires_grad_() for x in inputs())
    theirs_in = tuple(x.double().requires_grad_() for x in inputs())
    answer, other = ours(model, *mine_in, LEVELS[levels]), diffusers(exact, *theirs_in, LEVELS[levels])
    assert other.abs().max() > 0.1
    torch.testing.assert_close(answer.double(), other, atol=1e-4, rtol=1e-4)
    (answer * weight).sum().backward()
    (other * weight).sum().backward()
    for own, true in zip(mine_in, theirs_in, strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own.grad.double(), true.grad, atol=1e-4, rtol=1e-4)
    found = {key: parameter.grad for key, parameter in exact.named_parameters()}
    found = found if layout == "wan_diffusers" else wan_to_original(found)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for rule in rules(layout, TINY, gradients):
        mine = gradients[rule.ours]
        if not rule.theirs:
            assert mine is None or not mine.any(), rule.ours
            continue
        assert mine is not None, rule.ours
        theirs = torch.cat([found[key] for key in rule.theirs])
        scale = max(1.0, float(theirs.abs().max()))
        mine = mine.double()
        torch.testing.assert_close(mine / scale, theirs / scale, atol=1e-4, rtol=1e-4)
        assert torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.9999, rule.ours


@pytest.mark.parametrize("levels", LEVELS)
def test_bf16_stays_near_diffusers_in_bf16(levels: str, source, tmp_path) -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    model = imported(source[1], tmp_path / "model", kind="wan2.2")
    run_export(ExportConfig(layout="wan_diffusers"), tmp_path / "model", tmp_path / "diffusers")
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "diffusers", torch_dtype=torch.bfloat16).eval()
    latents, text = (x.bfloat16() for x in inputs())
    given = [latents.clone().requires_grad_() for _ in range(2)]
    answers = [
        ours(lower_precision(model, torch.bfloat16), given[0], text, LEVELS[levels]).float(),
        diffusers(theirs, given[1], text, LEVELS[levels]).float(),
    ]
    assert (answers[0] - answers[1]).norm() / answers[1].norm() < 2e-2
    for answer in answers:
        answer.square().mean().backward()
    gradients = [x.grad.float() for x in given]  # type: ignore[union-attr]
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 2e-2


@pytest.mark.parametrize("audio", ["fresh", "copy"])
def test_warm_start_gives_every_tensor_a_beginning(audio: str, wan, source, tmp_path) -> None:
    model = imported(source[1], tmp_path / "model", kind="wan2.2", audio_from=audio, seed=3)
    state, first = model.state_dict(), sizes_of(TINY).first
    theirs = dict(wan.state_dict())
    assert torch.equal(state["double_blocks.1.self_attn.q.weight"], theirs["blocks.1.attn1.to_q.weight"])
    assert torch.equal(state["single_blocks.0.ffn.0.weight"], theirs["blocks.2.ffn.net.0.proj.weight"])
    assert torch.equal(
        state["time.tables.fusion"], torch.cat([theirs[f"blocks.{i}.scale_shift_table"] for i in (2, 3, 4)])
    )
    sides = (
        "double_blocks.1.cross_attn_audio.norm_q.weight",
        "double_blocks.0.self_attn_audio.o.weight",
        "time.tables.alignment_audio",
    )
    for key in sides:
        video = state[key.replace("alignment_audio", "alignment_video").replace("_attn_audio", "_attn")]
        expected = video if audio == "copy" else drawn(first[key], state[key].shape, 3)
        assert torch.equal(state[key], expected), key
    for key in (
        "audio_embedder.conv.weight",
        "timbre_token.net.1.weight",
        "time.tables.head_audio",
        "head_audio.linear.weight",
    ):
        assert torch.equal(state[key], drawn(first[key], state[key].shape, 3)), key
    assert not state["head_audio.linear.weight"].any() and state["audio_embedder.mlp.w2.weight"].std() > 0


def test_fresh_audio_depends_on_the_seed_alone(source, tmp_path) -> None:
    with flavor_of(TINY) as name:
        ids = []
        for index, seed in enumerate((1, 1, 2)):
            config = ImportConfig(kind="wan2.2", flavor=name, seed=seed)
            ids.append(run_import(plan_import(config, source[1]), tmp_path / str(index))["checkpoint_id"])
    assert ids[0] == ids[1] != ids[2]
    again = load_model(tmp_path / "2", "model")[0].state_dict()
    assert all(value.isfinite().all() for value in again.values())


def test_the_other_way_round_into_the_original(source, wan, tmp_path) -> None:
    imported(source[1], tmp_path / "model", kind="wan2.2", audio_from="copy")
    told = run_export(ExportConfig(layout="wan"), tmp_path / "model", tmp_path / "wan.safetensors")
    expected = wan_to_original(dict(wan.state_dict()))
    found = read_all(tmp_path / "wan.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert "head_audio.linear.weight" in told["left_out"] and told["tensors"] == len(expected)
