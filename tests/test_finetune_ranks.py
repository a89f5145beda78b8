"""Fine-tuning on gloo ranks: what is trained and saved, resuming, merging, and the sound that is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import peft
import pytest
import torch
from finetune_world import config, finetune_run, run_ranks, write_world
from safetensors.torch import load_file
from test_lora import answer
from titan_world import rows

from finetune.adapters import ScaledAdapter, adapted_model, apply_adapters, read_adapter
from finetune.lora import LoraConfig
from finetune.sft.config import RateScales
from finetune.sft.finetune_run import FinetuneRun
from finetune.sft.heard import ROW
from finetune.sft.trainer import FinetuneTrainer
from pretrain.launch.continuing import verdict_of
from pretrain.model.checkpoint import load_model, read_model_folder
from pretrain.model.modality import modalities_of
from pretrain.recipe import ParallelConfig
from pretrain.schedule import task_of_step
from pretrain.tasks import TASKS
from pretrain.titan.safe_dcp import read_metadata

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory) -> FinetuneRun:
    """Uninterrupted, one rank, from the base's average."""
    run = finetune_run(world, tmp_path_factory.mktemp("tuned"), config(interval=1))
    assert run_ranks(run) == [0], (run.out / "log.0").read_text()[-3000:]
    return run


def adapter_of(run: FinetuneRun) -> dict[str, torch.Tensor]:
    return load_file(run.out / "adapter" / "adapter_model.safetensors")


def test_only_the_adapter_is_saved_and_it_learned(tuned):
    found = adapter_of(tuned)
    assert all(".lora_" in name for name in found)
    assert any(float(value.abs().max()) > 0 for name, value in found.items() if ".lora_B" in name)
    with (tuned.out / "checkpoint" / "step-6" / ".metadata").open("rb") as file:
        saved = read_metadata(file, "the state").state_dict_metadata
    weights = [name for name in saved if name.endswith((".weight", ".bias")) and "optim" not in name]
    assert weights and all(".lora_" in name for name in weights), weights


def test_the_merged_model_answers_like_the_adapter_and_plain_peft(tuned):
    base, folder = tuned.init_from, tuned.out / "adapter"
    assert base is not None
    expected = answer(adapted_model(base, folder)[0]).detach()
    for weights in ("model", "ema"):
        torch.testing.assert_close(
            answer(load_model(tuned.out / "model", weights)[0]), expected, rtol=1e-5, atol=1e-5
        )
    wrapped = peft.PeftModel.from_pretrained(load_model(base)[0], str(folder))  # type: ignore[arg-type]
    torch.testing.assert_close(answer(wrapped), expected, rtol=1e-6, atol=1e-6)
    facts = read_model_folder(tuned.out / "model").facts
    assert (facts["stage"], facts["step"], facts["codec_id"]) == ("finetune", 6, "test-codec")
    assert facts["parent"] == read_model_folder(base).facts["checkpoint_id"]


def test_adapters_in_memory(tuned):
    """Merged equals LoRA, a scale of 0 is the base bit for bit, and updates add up."""
    base, folder = tuned.init_from, tuned.out / "adapter"
    assert base is not None

    def with_adapters(*scales: float) -> tuple[torch.Tensor, dict[str, str]]:
        model, described = load_model(base)
        marks = apply_adapters(model, described, base, "ema", [ScaledAdapter(folder, s) for s in scales])
        return answer(model).detach(), marks

    plain, lora = answer(load_model(base)[0]).detach(), answer(adapted_model(base, folder)[0]).detach()
    assert (plain - lora).abs().max() > 1e-4
    one, marks = with_adapters(1.0)
    torch.testing.assert_close(one, lora, rtol=1e-5, atol=1e-5)
    assert marks == {"adapters": f"{read_adapter(folder)[0].adapter_id}=1"}
    assert torch.equal(with_adapters(0.0)[0], plain)
    torch.testing.assert_close(with_adapters(0.3, 0.7)[0], lora, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="adapter of the base's ema weights, these are its model weights"):
        model, described = load_model(base, "model")
        apply_adapters(model, described, base, "model", [ScaledAdapter(folder)])


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tuned, world, tmp_path):
    run = finetune_run(world, tmp_path, tuned.finetune)
    assert run_ranks(run, mishap="kill@3") == [-9]
    assert run_ranks(run) == [0], (run.out / "log.0").read_text()[-3000:]
    for name in ("adapter/adapter_model.safetensors", "model/ema.safetensors"):
        assert (run.out / name).read_bytes() == (tuned.out / name).read_bytes(), name
    mine, whole = ({row["step"]: row for row in rows(each)} for each in (run, tuned))
    assert [mine[step][ROW] for step in mine] == [whole[step][ROW] for step in whole]


def test_two_ranks_equal_one(tuned, world, tmp_path):
    run = finetune_run(world, tmp_path, tuned.finetune)
    assert run_ranks(run, 2) == [0, 0], (run.out / "log.0").read_text()[-3000:]
    one, two = adapter_of(tuned), adapter_of(run)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    assert rows(run)[-1][ROW] == rows(tuned)[-1][ROW]


@pytest.mark.parametrize(("target", "forgets"), [("model", False), ("data", True)])
def test_the_answers_of_the_base_are_no_reason_to_move(world, tmp_path, target, forgets):
    """Where all steps are on the base's data, an adapter that is to answer like the base stays at zero."""
    alone = config(steps=3, base_share=0.999, base_target=target)
    run = finetune_run(world, tmp_path, alone)
    assert {task_of_step(0, run.config.stage("finetune"), step).set_name for step in (1, 2, 3)} == {"base"}
    assert run_ranks(run) == [0], (run.out / "log.0").read_text()[-3000:]
    moved = {name for name, value in adapter_of(run).items() if ".lora_B" in name and value.any()}
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert len(losses) == 3
    assert (all(loss > 0 for loss in losses) and bool(moved)) is forgets
    assert (max(losses) == 0 and not moved) is not forgets


def test_conditions_are_dropped_as_the_set_of_a_step_says(world, tmp_path):
    run = finetune_run(world, tmp_path, config(base_share=0.5))
    trainer = FinetuneTrainer.__new__(FinetuneTrainer)  # no ranks: only what it draws
    trainer.tuning = trainer.run = run
    found = {}
    for step in range(1, 21):
        trainer.step = step
        drawn = task_of_step(0, run.config.stage("finetune"), step).set_name
        found.setdefault(drawn, set()).add(trainer.objective.dropout)
    assert found == {"clips": {run.finetune.clips_dropout}, "base": {run.finetune.objective.dropout}}
    assert run.finetune.clips_dropout != run.finetune.objective.dropout


def test_what_the_clips_move_on_the_base_is_held_back(world, tmp_path):
    """After steps on the clips the base's answers pull back: less changes than by training on its data."""
    drift = {}
    for target in ("model", "data"):
        run = finetune_run(world, tmp_path / target, config(steps=12, base_share=0.5, base_target=target))
        assert run_ranks(run) == [0], (run.out / "log.0").read_text()[-3000:]
        stage = run.config.stage("finetune")
        on_base = [step for step in range(7, 13) if task_of_step(0, stage, step).set_name == "base"]
        assert on_base
        drift[target] = [row["loss"] for row in rows(run) if row["step"] in on_base]
    assert all(0 < mine < theirs for mine, theirs in zip(drift["model"], drift["data"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_two_ranks_of_a_context_group_equal_one(tmp_path, full):
    """Each sample's tokens are split over both; the latents' sides have to divide."""
    world = write_world(tmp_path, side=4)
    runs = []
    for size in (1, 2):
        split = config(steps=3, full=full, parallel=ParallelConfig(context=size))
        runs.append(finetune_run(world, tmp_path / str(size), split))
        assert run_ranks(runs[-1], size) == [0] * size, (runs[-1].out / "log.0").read_text()[-3000:]
    one, two = (load_file(run.out / "model" / "ema.safetensors") for run in runs)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    assert rows(runs[0])[-1][ROW] == rows(runs[1])[-1][ROW]


def test_the_sound_in_the_loss_is_counted(tuned):
    """Seconds of the clips drawn by tasks with sound, which are 0.24 or 0.36 s long."""
    stage, last = tuned.config.stage("finetune"), rows(tuned)[-1]
    drawn = [task_of_step(0, stage, step) for step in range(1, 7)]
    heard = [draw.set_name for draw in drawn if TASKS[draw.task].audio]
    assert 4 * 0.24 * len(heard) <= last[ROW] <= 4 * 0.36 * len(heard)
    own = heard.count("clips")
    assert 4 * 0.24 * own <= last[f"{ROW}/clips"] <= 4 * 0.36 * own
    assert "s of sound of the clips trained on" in (tuned.out / "log.0").read_text()


def test_a_set_with_speech_whose_sound_is_not_trained_stops(world, tmp_path):
    silent = config(tasks={"T2V": 1.0}, base_share=0.0)
    silent = dataclasses.replace(silent, sound=dataclasses.replace(silent.sound, patience=2))
    run = finetune_run(world, tmp_path / "stops", silent)
    assert run_ranks(run) == [2]
    line = (run.out / "error.txt.0").read_text()
    assert "no sound was trained on in 2 steps on clips with speech" in line and line.count("\n") == 1
    picture = dataclasses.replace(silent, sound=dataclasses.replace(silent.sound, required=False))
    assert run_ranks(finetune_run(world, tmp_path / "picture", picture)) == [0]


def test_all_weights(world, tmp_path):
    """Two ranks equal one, and they start from the model, not from its average."""
    full = config(steps=3, full=True, lr=1e-3)
    runs = [finetune_run(world, tmp_path / str(size), full) for size in (1, 2)]
    assert run_ranks(runs[0]) == [0], (runs[0].out / "log.0").read_text()[-3000:]
    assert run_ranks(runs[1], 2) == [0, 0]
    one, two = (load_file(run.out / "model" / "model.safetensors") for run in runs)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    start = load_file(world / "base" / "model.safetensors")
    changed = [name for name, value in one.items() if not torch.equal(value, start[name])]
    assert len(changed) > len(start) / 2
    assert all(float((one[name] - start[name]).abs().max()) < 0.02 for name in start)
    assert not (runs[0].out / "adapter").exists()


def test_a_rate_per_modality_freezes_the_others(world, tmp_path):
    """With rate 0 for all but the sound, only its adapters move; resuming keeps the groups."""
    scaled = config(steps=3, interval=1, lr_scale=RateScales(video=0.0, shared=0.0), ema_decay=0.0)
    run = finetune_run(world, tmp_path, scaled)
    assert run_ranks(run, mishap="kill@2") == [-9] and run_ranks(run) == [0]
    found = {name.removeprefix("base_model.model."): value for name, value in adapter_of(run).items()}
    modalities = modalities_of(found)
    moved = {modalities[name] for name, value in found.items() if ".lora_B" in name and value.any()}
    assert moved == {"audio"} and set(modalities.values()) == {"video", "audio", "shared"}


def test_another_setting_is_refused_by_name(tuned):
    other = dataclasses.replace(tuned.finetune, lr=1e-5, lora=LoraConfig(rank=3, alpha=6.0, rslora=True))
    asked = dataclasses.replace(tuned, finetune=other, config=other.as_pretraining("debug", {"base": 1.0}))
    verdict = verdict_of(asked)
    assert verdict.action == "refuse"
    assert {change.field for change in verdict.counting} == {"lr", "lora.rslora"}
    neutral = dataclasses.replace(tuned.finetune, log_every=7, clips_every=50)
    assert verdict_of(dataclasses.replace(tuned, finetune=neutral)).action == "keep"
    longer = dataclasses.replace(tuned.finetune, steps=9)
    assert verdict_of(dataclasses.replace(tuned, finetune=longer)).action == "extend"
