"""Ranks of one machine, alone and in teams, make the clips of one process; dead ones are replaced."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from generation_world import QUICK, files_in, mixed_rows, write_model_and_codec, write_prompts
from safetensors.torch import load_file

from pretrain.clip_kind import ClipKind
from pretrain.generate import generate
from pretrain.generation.config import GenerateConfig
from pretrain.generation.ranks import on_ranks
from pretrain.generation.room import advice
from pretrain.generation.team import Seat
from pretrain.generation.worker import Assignment
from pretrain.model.flavors import flavor

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model_and_codec(tmp_path_factory.mktemp("world"))
    write_prompts(folder / "p.jsonl", mixed_rows(9))
    make(folder, folder / "whole")
    return folder


def make(world: Path, out: Path, config: GenerateConfig = QUICK, **more) -> dict:
    return generate(config, world / "model", world / "codec", world / "p.jsonl", out, **more)


def test_degrees_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="--context 2 does not divide --nproc 3"):
        on_ranks(3, context=2)
    with pytest.raises(ValueError, match="--shard spreads one model over several ranks"):
        on_ranks(1, shard=True)


def test_lanes_of_a_team():
    seats = [Seat(rank, 4, 2) for rank in range(4)]
    assert [seat.lane for seat in seats] == [0, 0, 1, 1]
    assert [seat.writes for seat in seats] == [True, False, True, False]
    one = Assignment((7,), False)
    assert [one.of_lane(seat.lane) for seat in seats] == [(7, True), (7, True), (7, False), (7, False)]


def test_what_would_fit_is_said():
    kind, gib = ClipKind(145, 704, 1280, False), 2**30
    args = flavor("nava_6b")
    line = advice(args, GenerateConfig(), 0, None, 2 * gib, 10 * gib)
    assert "the weights take 11.9 GiB, the GPU has 10.0 GiB, of which 2.0 are free" in line
    assert "--nproc 2 --shard" in line
    line = advice(args, GenerateConfig(batch_size=8), 8, kind, gib, 24 * gib)
    assert "8 clips of 145 frames of 1280x704 pixels" in line and "generate.batch_size=4 (now 8)" in line
    assert "--nproc 2 --context 2" in advice(args, GenerateConfig(batch_size=1), 1, kind, gib, 24 * gib)


@pytest.mark.slow
def test_two_ranks_make_the_very_clips_of_one_process(world, tmp_path):
    made = make(world, tmp_path / "out", spread=on_ranks(2))
    assert made["made"] == 9
    assert files_in(tmp_path / "out") == files_in(world / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "context", "most"), [(True, 1, 0.0), (False, 2, 1e-4), (True, 2, 1e-4)])
def test_ranks_that_hold_one_model_together_make_the_same_clips(world, tmp_path, shard, context, most):
    make(world, tmp_path / "out", spread=on_ranks(2, shard=shard, context=context))
    files = sorted((world / "whole").glob("*.safetensors"))
    assert len(files) == 9
    for file in files:
        found, wanted = load_file(tmp_path / "out" / file.name), load_file(file)
        for name, latents in wanted.items():
            torch.testing.assert_close(found[name], latents, rtol=0, atol=most)


@pytest.mark.slow
def test_a_clip_that_does_not_split_is_refused_with_its_row(world, tmp_path):
    narrow = dataclasses.replace(QUICK, width=96, height=32)  # 1 x 3 tokens a frame
    with pytest.raises(
        ValueError, match=r"p\.jsonl:1 \(5 frames of 96x32 .* with --context 2: a frame of 1 x 3"
    ):
        make(world, tmp_path / "out", narrow, spread=on_ranks(2, context=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_one_line_and_leaves_nothing(world, tmp_path):
    import shutil

    shutil.copytree(world / "model", tmp_path / "model")
    weights = tmp_path / "model" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        generate(
            QUICK,
            tmp_path / "model",
            world / "codec",
            world / "p.jsonl",
            tmp_path / "out",
            spread=on_ranks(2),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_rank_is_replaced_and_its_batch_made(world, tmp_path):
    killed: list[int] = []

    def kill_each_once() -> None:
        end = time.monotonic() + 120
        while len(killed) < 2 and time.monotonic() < end:
            rows = tmp_path / "out" / ".nava-parts" / "rows"
            for process in psutil.Process().children() if rows.is_dir() and any(rows.iterdir()) else ():
                if len(killed) < 2 and process.pid not in killed:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill_each_once)
    thread.start()
    make(world, tmp_path / "out", dataclasses.replace(QUICK, batch_size=1), spread=on_ranks(2))
    thread.join()
    assert len(killed) == 2
    make(world, tmp_path / "again", dataclasses.replace(QUICK, batch_size=1))
    assert files_in(tmp_path / "out") == files_in(tmp_path / "again")
