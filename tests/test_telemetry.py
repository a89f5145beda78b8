"""What a training's log says of speed and memory: closed forms, then real ranks."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from model_cases import audio_stream, clean_batch, conditioning, debug_model, video_stream
from titan_ranks import run_ranks
from titan_world import config, rows, stage_run, write_latents
from torch.utils.flop_counter import FlopCounterMode

from finetune.lora import LoraConfig, inject
from pretrain.dropout import DropoutConfig
from pretrain.model.flavors import build_model, flavor
from pretrain.objective import Corrupted, ObjectiveConfig, corrupt, velocity_loss
from pretrain.progress import describe_step
from pretrain.recipe import CheckpointConfig, MonitorConfig
from pretrain.titan.checkpoint_times import CheckpointTimes
from pretrain.titan.step_flops import batch_flops
from pretrain.titan.telemetry import RankTimes, Telemetry, known_peak, slowest, straggler_line
from pretrain.titan.window import StepResult, Window
from pretrain.types import Task

TIMES = [
    "time/step_p50_s",
    "time/step_p95_s",
    "time/step_max_s",
    "time/data_wait_s",
    "time/data_wait_percent",
    "time/prepare_s",
    "tflops_per_s_per_rank",
    "tokens_per_s_per_rank",
    "memory/max_resident_gib",
]


def step(started: float, **own: float) -> StepResult:
    return StepResult(Task.T2AV, 1.0, 2.0, 0.2, 3.0, 100, started, **own)


def test_a_window_has_the_quantiles_of_its_steps_without_what_is_between_them():
    window = Window()
    for index in range(20):
        window.add(step(10.0 * index), 10.0 * index + 1 + (index == 7))
    row = window.summary(num_ranks=4)
    assert (row["time/step_p50_s"], row["time/step_max_s"]) == (1.0, 2.0)
    assert row["time/step_p95_s"] == pytest.approx(1.05)
    assert row["seconds_per_step"] == pytest.approx(191 / 20)
    assert row["tokens_per_s"] == pytest.approx(2000 / 191) == 4 * row["tokens_per_s_per_rank"]
    assert len(window.take()) == 20 and window.take() == []


@pytest.mark.parametrize("task", [Task.T2AV, Task.T2A, Task.T2V])
@pytest.mark.parametrize("modality_mask", [0.0, 1.0])
def test_the_flops_of_a_batch_are_those_that_torch_counts(task, modality_mask):
    model, args = debug_model(), flavor("debug")
    objective = ObjectiveConfig(dropout=DropoutConfig(modality_mask=modality_mask))
    corrupted = corrupt(dataclasses.replace(clean_batch(), task=task), objective, seed=0)
    with FlopCounterMode(display=False) as counter:
        velocity = model(corrupted.video, corrupted.audio, corrupted.conditioning)
        velocity_loss(velocity, corrupted).loss(80.0, 20.0, 0.2).backward()
    assert batch_flops(args, corrupted) == counter.get_total_flops()


def test_under_an_adapter_each_product_has_one_of_its_gradients():
    args = dataclasses.replace(flavor("debug"), num_alignment_blocks=4, num_fusion_blocks=12)
    model = build_model(args)
    model.init_weights()
    inject(model, LoraConfig(rank=1, alpha=1.0))
    batch = SimpleNamespace(
        video=video_stream(frames=24), audio=audio_stream(tokens=30), conditioning=conditioning(tokens=4)
    )
    with FlopCounterMode(display=False) as counter:
        answer = model(batch.video, batch.audio, batch.conditioning)
        torch.stack([part.sum() for part in answer]).sum().backward()
    found, whole = (batch_flops(args, cast(Corrupted, batch), frozen) for frozen in (True, False))
    assert found == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert found < 0.85 * whole


def test_a_peak_that_torchtitan_only_guesses_is_none():
    assert known_peak("cuda", "NVIDIA H100 80GB HBM3", 989e12) == 989e12
    assert known_peak("cuda", "NVIDIA A100-SXM4", 312e12) == 312e12
    assert known_peak("cuda", "NVIDIA GeForce RTX 3060", 312e12) == 0
    assert known_peak("cpu", "cpu", 312e12) == 0


def telemetry(peak_tflops: float = 0.0) -> Telemetry:
    made = Telemetry.__new__(Telemetry)
    made.peak_flops, made.device = peak_tflops * 1e12, torch.device("cpu")
    return made


def test_mfu_and_the_share_of_waiting_in_closed_form():
    ranks = [
        RankTimes(step=8.0, data=2.0, flops=3e12),
        RankTimes(step=8.0, data=0.0, flops=1e12, resident_gib=3),
    ]
    row = telemetry(peak_tflops=2.0)._speed(ranks, num_steps=4, seconds=10.0)
    assert row["tflops_per_s_per_rank"] == pytest.approx(0.2) and row["mfu_percent"] == pytest.approx(10.0)
    assert row["time/data_wait_s"] == pytest.approx(0.25)
    assert row["time/data_wait_percent"] == pytest.approx(12.5)
    assert row["memory/max_resident_gib"] == 3 and "memory/max_active_gib" not in row
    assert "mfu_percent" not in telemetry()._speed(ranks, 4, 10.0)


def test_the_slowest_rank_of_each_part_is_in_one_line():
    ranks = [RankTimes(data=0.1 * index, checkpoint=5.0 - index) for index in range(4)]
    found = {part: slowest(ranks, part, 2) for part in ("data", "checkpoint")}
    assert (found["data"].rank, found["checkpoint"].rank) == (3, 0)
    assert found["data"].seconds == pytest.approx(0.15) and found["checkpoint"].median == pytest.approx(1.75)
    # of two ranks the slower is not its own yardstick
    assert slowest([RankTimes(data=0.01), RankTimes(data=5.0)], "data", 1).median == pytest.approx(2.505)
    line = straggler_line(found, 4)
    assert "data rank 3 0.1500 s" in line and "\n" not in line


def test_checkpoints_are_timed_by_part_and_a_write_where_it_ends():
    times, written = CheckpointTimes(), Future()
    with times.stopped(), times.waiting():
        time.sleep(0.01)
    assert not times.take().stopped_s, "nothing was saved"
    with times.stopped(), times.saving(asynchronous=True) as saving:
        time.sleep(0.02)
        saving.result = written
    staged = times.take()
    assert staged.staging_s >= 0.02 and staged.stopped_s >= staged.staging_s and not staged.write_s
    time.sleep(0.02)
    written.set_result(None)
    ended = times.take().row()
    assert ended.keys() == {"time/checkpoint_write_s"} and ended["time/checkpoint_write_s"] >= 0.02
    failed: Future = Future()
    with times.saving(asynchronous=True) as saving:
        saving.result = SimpleNamespace(upload_completion=failed)
    failed.set_exception(OSError("full"))
    assert not times.take().write_s


def test_the_line_of_a_step_says_what_is_worth_it():
    row = {"loss_video": 0.5, "tokens_per_s": 1000.0, "skipped_nonfinite": 0, "skipped_spikes": 0}
    assert describe_step(row) == "video 0.500, 1,000 tokens/s"
    row |= {"mfu_percent": 41.3, "time/data_wait_percent": 12.0}
    assert describe_step(row) == "video 0.500, 1,000 tokens/s, MFU 41 %, 12 % waiting for data"


@pytest.mark.parametrize(
    "wrong",
    [{"profile": "0"}, {"profile": "7-5"}, {"profile": "a"}, {"profile": "3,4"}, {"profile_ranks": "x"}],
)
def test_steps_and_ranks_that_cannot_be_read_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"^monitor\.{next(iter(wrong))}: [^\n]*$"):
        MonitorConfig(**wrong)


def test_steps_to_profile_are_read_in_order():
    config = MonitorConfig(profile="500, 20-22", profile_ranks="0,8")
    assert config.spans() == [(20, 22), (500, 500)]
    assert [config.profiles(rank) for rank in (0, 1, 8)] == [True, False, True]


@pytest.mark.distributed
def test_two_ranks_log_speed_stragglers_and_checkpoints_and_profile_what_is_asked(tmp_path):
    monitor = MonitorConfig(peak_tflops=0.001, profile="3-4", profile_ranks="1", profile_warmup=1)
    recipe = config(
        steps=5,
        log_every=2,
        deterministic=True,
        monitor=monitor,
        checkpoint=CheckpointConfig(interval=2, asynchronous=True),
    )
    run = stage_run(tmp_path / "run", write_latents(tmp_path / "latents"), recipe)
    assert run_ranks(run.save(), 2) == [0, 0]
    found = [row for row in rows(run) if "loss" in row]
    assert [row["step"] for row in found] == [1, 2, 4, 5]
    for row in found:
        assert {*TIMES, "mfu_percent"} <= row.keys()
        assert 0 < row["time/step_p50_s"] <= row["time/step_p95_s"] <= row["time/step_max_s"]
        assert row["tokens_per_s_per_rank"] == pytest.approx(row["tokens_per_s"] / 2)
        assert row["mfu_percent"] == pytest.approx(100 * row["tflops_per_s_per_rank"] / 0.001)
        for part in ("data", "prepare", "step", "checkpoint"):
            assert row[f"time/slowest_{part}_rank"] in (0, 1)
    assert found[2]["time/checkpoint_staging_s"] > 0 and found[2]["time/checkpoint_stopped_s"] > 0
    assert sum("slowest of 2 ranks" in line for line in (run.out / "log.0").read_text().splitlines()) == 4
    traces = [str(path.relative_to(run.out)) for path in run.out.glob("profile_traces/**/*.json")]
    assert traces == ["profile_traces/iteration_4/rank1_trace.json"]
    text = (run.out / traces[0]).read_text()
    assert [f"ProfilerStep#{number}" in text for number in (1, 2, 3, 4)] == [False, True, True, False]
