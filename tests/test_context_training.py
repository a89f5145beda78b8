from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from titan_ranks import run_ranks
from titan_world import config, rows, stage_run, write_latents

from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.stream.sample_set import check_sets_split, open_sets
from pretrain.data.stream.store import LatentStore
from pretrain.launch.stage_run import StageRun
from pretrain.recipe import ParallelConfig
from pretrain.titan.validate import Validator

HSDP = ParallelConfig(replicas=2, context=2, activation_checkpointing="selective")


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    folder = write_latents(tmp_path_factory.mktemp("latents"), side=4)
    with LatentWriter(folder / "validation", codec_id="test-codec") as writer:
        for sample in LatentStore(folder / "paired"):
            writer.add(sample)
    return folder


def trained(out: Path, latents: Path, parallel: ParallelConfig, world_size: int) -> StageRun:
    run = stage_run(out, latents, config(3, interval=100, parallel=parallel))
    assert run_ranks(run.save(), world_size) == [0] * world_size, (out / "log.0").read_text()[-2000:]
    return run


@pytest.fixture(scope="module")
def one_rank(latents, tmp_path_factory) -> StageRun:
    return trained(tmp_path_factory.mktemp("one"), latents, ParallelConfig(), 1)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param(HSDP, id="replicas x context"),
        pytest.param(ParallelConfig(context=2), id="shards x context", marks=pytest.mark.slow),
    ],
)
def test_training_on_four_ranks_equals_one(latents, one_rank, tmp_path, parallel):
    run = trained(tmp_path, latents, parallel, 4)
    ours, theirs = rows(run), rows(one_rank)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert "validation/video" in ours[-1]
    for mine, other in zip(ours, theirs, strict=True):
        for name in (name for name in other if name.startswith(("loss", "validation", "grad_norm"))):
            assert mine[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), (mine["step"], name)
    weights, expected = (load_file(each.out / "model" / "ema.safetensors") for each in (run, one_rank))
    for name, value in expected.items():
        assert (weights[name] - value).abs().max() < 2e-5, name


def test_bad_degrees_are_refused_before_anything_starts(latents):
    with pytest.raises(
        ValueError, match=r"parallel\.context 4 does not divide the model's 2 heads; choose a divisor"
    ):
        config(parallel=ParallelConfig(context=4))
    with pytest.raises(
        ValueError, match=r"parallel\.context 2: paradigm dual_tower does not split its tokens; set it to 1"
    ):
        config(parallel=ParallelConfig(context=2), flavor="debug_dual_tower")
    with pytest.raises(ValueError, match=r"parallel\.context and parallel\.replicas must be at least 1"):
        config(parallel=ParallelConfig(context=0))
    with pytest.raises(
        ValueError,
        match=r"parallel\.replicas 2 x parallel\.context 2 does not divide 2 ranks; choose divisors",
    ):
        config(parallel=HSDP).local_batch(2)
    assert config(parallel=HSDP).local_batch(4) == config().local_batch(2)
    stage = config().stage("stage1")
    with pytest.raises(
        ValueError, match="data set 'paired': a frame of 2 x 2 tokens does not split over 3 ranks"
    ):
        check_sets_split(open_sets(latents, stage), 2, 3)
    with pytest.raises(ValueError, match="data set 'audio_only': 6 audio tokens are too few for 8 ranks"):
        check_sets_split(dict(sorted(open_sets(latents, stage).items())), 2, 8)
    check_sets_split(open_sets(latents, stage), 2, 4)


def test_validation_clips_that_do_not_split_are_refused_before_training(tmp_path):
    folder = write_latents(tmp_path / "latents")
    (folder / "paired").rename(folder / "validation")
    run = stage_run(tmp_path / "out", folder, config(parallel=ParallelConfig(context=2)))
    with pytest.raises(
        ValueError, match="data set 'validation': a frame of 1 x 1 tokens does not split over 2 ranks"
    ):
        Validator(run, 0, 2, torch.device("cpu"))
