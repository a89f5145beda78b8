"""A GPU without room: one line that says what was asked for, which part, and what helps; no traceback.

Networks that raise torch's own error stand in for a GPU.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from align_world import align_run, error, write_mixed, write_world
from align_world import config as align_config
from context_ranks import cases
from model_cases import debug_model
from rank_processes import run_processes
from titan_world import config, stage_run, write_latents

from finetune.make_rollouts import RolloutsConfig, make_rollouts
from finetune.recipe import StopConfig
from finetune.room import align_ways
from pretrain.codecs.load import load_codecs
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import clip_jobs
from pretrain.generation.maker import ClipMaker
from pretrain.launch.nodes import Nodes
from pretrain.launch.torchrun import NOT_AGAIN, failure, run_ranks
from pretrain.model.shell import AVTransformer
from pretrain.model.shortage import Shortage, no_room, part
from pretrain.prompt import read_prompts
from pretrain.recipe import ParallelConfig, PretrainConfig
from pretrain.sampling import SamplerConfig
from pretrain.titan.room import training_ways

GIB = 2**30
TEXT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 412.00 "
    "MiB is free. Including non-PyTorch memory, this process has 78.70 GiB memory in use. Of the allocated "
    "memory 70.00 GiB is allocated by PyTorch, and {unused} is reserved by PyTorch but unallocated."
)
ASKED = "2.50 GiB were asked for, of the GPU's 79.1 GiB 0.40 are free"


def full(*_: Any, unused: str = "512.00 MiB", **__: Any) -> Any:
    raise torch.OutOfMemoryError(TEXT.format(unused=unused))


def test_what_torch_says_is_read():
    found = Shortage.of(torch.OutOfMemoryError(TEXT.format(unused="7.00 GiB")))
    assert found == Shortage(5 * GIB // 2, 412 * 2**20, int(79.15 * GIB), 7 * GIB)
    assert str(found) == ASKED and "expandable_segments" in found.ways()[0]
    assert not Shortage.of(torch.OutOfMemoryError(TEXT.format(unused="1.00 GiB"))).ways()
    assert str(Shortage.of(torch.OutOfMemoryError("no message"))) == "the GPU's memory is taken"


def test_the_inner_part_and_the_place_are_named():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.model.attention.scaled_attention", full)
        with (
            pytest.raises(torch.OutOfMemoryError) as caught,
            part("a step"),
            part(lambda: "a validation"),
        ):
            debug_model()(*cases()["joint"])
    said = str(no_room(caught.value, ["take another"], "rank 1: "))
    place = r"\(pretrain/model/attention\.py \w+\)"
    assert re.fullmatch(f"rank 1: no room for a validation: {re.escape(ASKED)} {place}; take another", said)


def test_settings_that_are_set_already_are_not_named():
    config = dataclasses.replace(PretrainConfig(), flavor="nava_6b", global_batch_size=32)
    ways = " ".join(training_ways(config, "pretrain", 4))
    assert "pretrain.local_batch_size=4 (now 8)" in ways and "checkpointing=full (now none)" in ways
    assert "pretrain.parallel.context=2 (now 1)" in ways and "`nava plan nava_6b --gpus 4`" in ways
    tight = ParallelConfig(activation_checkpointing="full", context=2)
    config = dataclasses.replace(config, local_batch_size=1, parallel=tight)
    ways = " ".join(training_ways(config, "finetune", 4))
    assert "local_batch_size" not in ways and "checkpointing" not in ways
    assert "finetune.parallel.context=4 (now 2)" in ways
    # neither more ranks than there are, nor a degree that the model's three heads refuse
    assert "context" not in " ".join(training_ways(config, "finetune", 2))
    mini = dataclasses.replace(PretrainConfig(), flavor="mini")
    assert "context" not in " ".join(training_ways(mini, "pretrain", 4))


def test_an_alignment_names_what_its_phases_hold(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ways = " ".join(align_ways(align_run(world, tmp_path, align_config(("nft", "grpo")))))
    assert "align.nft.micro_batch=4 (now 8)" in ways and "align.grpo.rollout_batch=" in ways
    assert "align.lora.base=int8" in ways and "align.awm" not in ways and "nava plan RECIPE --align" in ways


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_mixed(write_world(tmp_path_factory.mktemp("world")))


QUICK = GenerateConfig(
    num_frames=5, height=32, width=32, bf16=False, sampler=SamplerConfig(solver="euler", steps=2)
)


@pytest.mark.parametrize(
    ("broken", "method", "said", "helps"),
    [
        ("text", "encode", "no room to encode the prompts, first frames and voices of 8 clips", "--parked"),
        ("video", "encode", "no room to encode the prompts, first frames and voices of 8 clips", "--parked"),
        ("speaker", "embed", "no room to encode the prompts, first frames and voices of 8 clips", "--parked"),
        ("model", "", "no room to make 8 clips of 5 frames of 32x32 pixels", "--nproc 2 --shard"),
        ("video", "decode", "no room to decode 8 clips of 5 frames of 32x32 pixels", "--decode-tile 256"),
        ("audio", "decode_channels", "no room to decode 8 clips of 5 frames", "--decode-tile 256"),
    ],
)
def test_every_part_of_a_generation_says_what_helps(world, broken, method, said, helps):
    codecs = load_codecs(world / "codec")
    model: Callable[..., Any] = debug_model()
    if broken == "model":
        model = full
    else:
        setattr(getattr(codecs, broken), method, full)
    maker = ClipMaker(model, codecs, QUICK, torch.device("cpu"), {})  # type: ignore[arg-type]
    rows = [row for row in read_prompts(world / "held_out.jsonl") if row.image_path]
    rows += [row for row in read_prompts(world / "mixed.jsonl") if row.image_path]
    with pytest.raises(ValueError, match=said) as caught:
        maker.make(clip_jobs(rows, QUICK))
    line = str(caught.value)
    assert "\n" not in line and "2.50 more were asked for" in line and helps in line
    assert "generate.batch_size=4" in line and "79.2 GiB" in line.replace("79.1 GiB", "79.2 GiB")


def test_rollouts_name_their_batch(world, tmp_path, monkeypatch):
    monkeypatch.setattr(AVTransformer, "forward", full)
    sizes = align_config(stop=StopConfig(prompts=2))
    asked = RolloutsConfig(clips_per_prompt=2, batch=6, bf16=False, sampler=sizes.deployed)
    where = (world / "base", world / "codec", world / "prompts.jsonl", tmp_path / "store")
    with pytest.raises(ValueError, match=r"^no room for rollouts, 6 clips at a time: 2\.50 GiB .*") as caught:
        make_rollouts(asked, sizes, *where)
    assert "set rollout.batch=3 (now 6), or set rollout.quantisation=int8" in str(caught.value)
    assert not (tmp_path / "store").exists()


def _training_rank(rank: int, resolved: Path, at: int) -> int:
    """A training whose GPU is full from forward `at` on, 0 = when it is built."""
    from pretrain.titan import run

    if not at:
        run.PretrainTrainer.__init__ = full  # type: ignore[method-assign]
    _full_from(at)
    return run.main(resolved)


def _full_from(at: int) -> None:
    calls, forward = [0], AVTransformer.forward

    def counted(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        return full() if calls[0] >= at else forward(*given, **more)

    AVTransformer.forward = counted  # type: ignore[method-assign]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("at", "what"), [(0, "the model and its optimizer"), (1, "the first step"), (4, "step 4")]
)
def test_a_training_says_where_its_room_ended(tmp_path, at, what):
    recipe = config(validate_every=0)
    run = stage_run(tmp_path / "out", write_latents(tmp_path / "latents"), recipe)
    codes = run_processes(_training_rank, 1, run.out, run.out / "resolved.json", at)
    assert codes == [2], (run.out / "log.0").read_text()[-2000:]
    line = error(run).strip()  # type: ignore[arg-type]
    assert line.startswith(f"rank 0: no room for {what}: {ASKED}") and "local_batch_size=2 (now 4)" in line
    assert "pretrain.parallel.activation_checkpointing=full" in line and "`nava plan debug --gpus 1`" in line
    # in the middle a restart goes on from a checkpoint; what does not fit at all is not tried again
    assert line.endswith(NOT_AGAIN) == (at < 4)
    # the traceback is in the log
    assert "torch.OutOfMemoryError" in (run.out / "log.0").read_text()


def _align_rank(rank: int, resolved: Path, at: int) -> int:
    from finetune.run import main

    _full_from(at)
    return main(resolved)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("at", "what"), [(1, "rollouts, 2 clips at a time"), (99, "an update of nft, 8 clips at a time")]
)
def test_an_alignment_says_whether_rollouts_or_updates_have_no_room(world, tmp_path, at, what):
    given = align_config(("nft",), stop=StopConfig(prompts=2, every=2))
    run = align_run(world, tmp_path / "out", given)
    run.save()
    if at == 99:
        codes = run_processes(_align_rank_in_update, 1, run.out, run.out / "resolved.json")
    else:
        codes = run_processes(_align_rank, 1, run.out, run.out / "resolved.json", at)
    assert codes == [2], (run.out / "log.0").read_text()[-2000:]
    line = error(run)
    assert line.startswith(f"rank 0: no room for {what}: {ASKED}"), line
    assert "set align.nft.micro_batch=4 (now 8)" in line and "align.lora.base=int8" in line


def _align_rank_in_update(rank: int, resolved: Path) -> int:
    from finetune.run import main
    from finetune.trainer import Trainer

    Trainer._apply = full  # type: ignore[method-assign]
    return main(resolved)


@pytest.mark.slow
@pytest.mark.distributed
def test_torchrun_does_not_repeat_what_does_not_fit(tmp_path, monkeypatch):
    run = stage_run(tmp_path / "out", write_latents(tmp_path / "latents"), config(validate_every=0))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]]))
    code = run_ranks("out_of_memory_rank", run.out, 1, 0, None, Nodes(max_restarts=2))
    assert code
    assert (run.out / "built").read_text() == "x", (run.out / "log.txt").read_text()[-2000:]
    assert str(failure(run.out, code)).startswith("rank 0: no room for the first step: 2.50 GiB")


def test_ray_s_ranks_and_workers_say_it_too(world, tmp_path, monkeypatch):
    """What they raise is passed on as it is where it is a ValueError."""
    from orchestration.actors import RolloutWorker, TrainerRank

    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # set by them, and put back afterwards
        monkeypatch.setenv(name, "0")
    run = align_run(world, tmp_path, align_config(("nft",)))
    rank = TrainerRank(run, 0, 1, 1)
    rank.learner = SimpleNamespace(learn=full)  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match=r"^no room for the model: 2\.50 GiB .* set align\.nft\.micro_batch=4"
    ):
        rank.learn(0, 0, None, True)
    worker = RolloutWorker(run, "worker", 1, lambda reference: {})
    worker.__dict__ |= {"ranks": SimpleNamespace(device="cpu"), "policy": None, "version": "v"}
    task = SimpleNamespace(version="v", start=0, end=1, plan=None, key=())
    worker._encoded = lambda task: SimpleNamespace(clips=lambda *_: None)  # type: ignore[method-assign, assignment, return-value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.rollout.roll_out", full)
        with pytest.raises(
            ValueError, match=r"^no room for the model: 2\.50 GiB .*align\.nft\.rollout_batch"
        ):
            worker.roll_out(task, [])  # type: ignore[arg-type]
