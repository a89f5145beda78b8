"""The recipe section of fine-tuning: mixes, refusals, modalities, rank-stabilised LoRA."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import debug_model
from test_lora import answer, fill

from experiments.recipes.load import load_recipe
from finetune.adapters import (
    Adapter,
    ScaledAdapter,
    adapted_model,
    gathered,
    merge_adapter,
    parse_scaled,
    save_adapter,
)
from finetune.lora import DEFAULT, LoraConfig, adapter_parameters, adapters_in, inject
from finetune.sft.config import FinetuneConfig, RateScales, SoundConfig
from finetune.sft.heard import ROW, SoundTrained
from pretrain.model.checkpoint import load_model, write_model
from pretrain.model.flavors import build_model, flavor
from pretrain.model.modality import modalities_of
from pretrain.recipe import ParallelConfig
from pretrain.schedule import task_of_step
from pretrain.titan.train_spec import create_moments, split_groups


@given(share=st.floats(0.05, 0.9), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_the_base_is_drawn_by_its_share(share, seed):
    config = FinetuneConfig(base_share=share, seed=seed).as_pretraining("debug", {"a": 1.0, "b": 3.0})
    stage, steps = config.stage("finetune"), 3000
    assert sum(stage.sets.values()) == pytest.approx(1) and stage.sets["b"] == pytest.approx(0.75 * share)
    drawn = [task_of_step(seed, stage, step).set_name for step in range(steps)]
    found = 1 - drawn.count("clips") / steps
    assert abs(found - share) < 5 * (share * (1 - share) / steps) ** 0.5


def test_heads_have_to_split_over_a_context_group_of_the_model_in_hand_only():
    config = FinetuneConfig(parallel=ParallelConfig(context=2))  # the mini has three heads
    assert config.as_pretraining("debug", {}).parallel.context == 2
    with pytest.raises(ValueError, match="does not divide the model's 3 heads"):
        config.as_pretraining("mini", {})
    with pytest.raises(ValueError, match=r"parallel\.context .* at least 1"):
        FinetuneConfig(parallel=ParallelConfig(context=0))


def test_without_base_data_every_step_is_on_the_clips():
    stage = FinetuneConfig().as_pretraining("debug", {}).stage("finetune")
    assert stage.sets == stage.audio_sets == {"clips": 1.0}


def test_the_model_s_own_answers_are_kept_where_an_adapter_can_be_switched_off():
    assert FinetuneConfig().keeps_answers and FinetuneConfig(base_target="model").keeps_answers
    assert (
        not FinetuneConfig(full=True).keeps_answers and not FinetuneConfig(base_target="data").keeps_answers
    )


def test_levels_are_those_of_the_mini_s_pretraining():
    """The sampler's steps are near pure noise, where the release's weights are next to nothing at shift 1."""
    pretrained = load_recipe("mini", Path(__file__).parent.parent / "params.yaml").pretrain
    assert FinetuneConfig().objective.levels == pretrained.objective.levels


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FinetuneConfig(base_share=1.0), "base_share"),
        (lambda: FinetuneConfig(base_target="teacher"), "base_target: auto, data or model"),
        (lambda: FinetuneConfig(base_weight=0.0), "base_weight: a factor above 0"),
        (lambda: FinetuneConfig(base_target="model", full=True), "no copy of the model to ask"),
        (lambda: FinetuneConfig(tasks={"T2X": 1.0}), "unknown task"),
        (lambda: RateScales(video=-1.0), "lr_scale"),
        (lambda: RateScales(video=0.0, audio=0.0, shared=0.0), "lr_scale"),
        (lambda: SoundConfig(max_bad=1.0), "max_bad"),
        (lambda: LoraConfig(dora=True), "DoRA is not supported"),
        (lambda: parse_scaled("my/adapter=loud"), "expected FOLDER or FOLDER=SCALE"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_scaled_adapters_on_the_command_line():
    assert parse_scaled("a/b") == ScaledAdapter(parse_scaled("a/b").folder, 1.0)
    assert parse_scaled("a/b=0.25").scale == 0.25 and str(parse_scaled("a/b=0").folder) == "a/b"


@pytest.mark.parametrize(
    ("changes", "trains"),
    [
        ({}, True),
        ({"tasks": {"T2V": 1.0}}, False),
        ({"tasks": {"T2V": 1.0, "T2A": 0.0, "T2AV": 0.1}}, True),
        ({"lr_scale": RateScales(audio=0.0, shared=0.0)}, False),
        ({"lr_scale": RateScales(audio=0.0)}, True),  # shared weights learn from the sound
    ],
)
def test_whether_sound_is_trained(changes, trains):
    assert FinetuneConfig(**changes).trains_audio is trains
    weightless = dataclasses.replace(FinetuneConfig().objective, audio_weight=0.0)
    assert not FinetuneConfig(**changes, objective=weightless).trains_audio


def test_sound_is_summed_and_its_absence_stops():
    sound = SoundTrained(needed=True, patience=3)
    sound.add(2.5, of_clips=False)
    sound.add(0.0, of_clips=True)
    sound.add(0.0, of_clips=True)
    after = SoundTrained(needed=True, patience=3)
    after.load_state_dict(sound.state_dict())
    with pytest.raises(ValueError, match="no sound was trained on in 3 steps"):
        after.add(0.0, of_clips=True)
    sound.add(1.5, of_clips=True)
    assert sound.row() == {ROW: 4.0, f"{ROW}/clips": 1.5}
    SoundTrained(needed=False, patience=1).add(0.0, of_clips=True)


@pytest.mark.parametrize("name", ["debug", "debug_dual_tower", "debug_unified", "nava_7b_split"])
def test_modalities_of_the_weights_match_what_a_missing_modality_leaves_unused(name):
    """A weight of one modality is not touched by a forward of the other alone; a shared one by both."""
    if name == "nava_7b_split":  # too large to run: its doubled parts are all told apart
        with torch.device("meta"):
            names = [key for key, _ in build_model(flavor(name)).named_parameters()]
        found = modalities_of(names)
        doubled = {key.split(".")[2] for key in names if key.startswith("double_blocks.")}
        assert {found[key] for key in names if key.startswith("double_blocks.")} == {"video", "audio"}
        assert {part for part in doubled if part.endswith("_audio")}
        return
    from model_cases import audio_stream, conditioning, present, video_stream

    model = debug_model(name=name)
    touched = {}
    for modality, streams in (("video", (video_stream(), None)), ("audio", (None, audio_stream()))):
        model.zero_grad(set_to_none=True)
        present(getattr(model(*streams, conditioning()), modality)).square().mean().backward()
        touched[modality] = {key for key, value in model.named_parameters() if value.grad is not None}
    for key, modality in modalities_of(dict(model.named_parameters())).items():
        if modality == "video":
            assert key not in touched["audio"], key
        elif modality == "audio":
            assert key not in touched["video"], key


def test_parameter_groups_have_the_rates_of_their_modality():
    model = inject(debug_model(), LoraConfig(rank=2), (DEFAULT,))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.5)
    split_groups(optimizer, model, {"video": 1.0, "audio": 4.0, "shared": 0.0})
    create_moments(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2.0, 0.0]
    taken = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(taken) == sorted(map(id, trained))


def test_rank_stabilised_lora_is_peft_s(tmp_path):
    config, base = LoraConfig(rank=4, alpha=8.0, rslora=True), debug_model()
    base_id = write_model(tmp_path / "base", "debug", flavor("debug"), {"ema": base.state_dict()}, {})
    model = inject(base, config, (DEFAULT,))
    assert adapters_in(model) == [DEFAULT] and config.scaling == 4.0
    fill(model)
    expected = answer(model).detach()
    described = Adapter(flavor="debug", base_id=base_id, config=config)
    save_adapter(tmp_path / "adapter", gathered(adapter_parameters(model, DEFAULT)), described)
    plain = load_model(tmp_path / "base")[0]
    wrapped = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))  # type: ignore[arg-type]
    assert torch.equal(answer(wrapped), expected)
    assert torch.equal(answer(adapted_model(tmp_path / "base", tmp_path / "adapter")[0]), expected)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(answer(load_model(tmp_path / "merged")[0]), expected, rtol=1e-5, atol=1e-5)
