"""Two ranks whose training states are in an object store, and what goes wrong with ranks and stores."""

import dataclasses
import threading
import time
from pathlib import Path

import pytest
from object_store import BUCKET, object_store
from titan_ranks import run_ranks
from titan_world import config, stage_run, write_latents

from pretrain.launch.stage_run import StageRun, check_checkpoints
from pretrain.recipe import CheckpointConfig
from pretrain.storage import list_folder, place
from pretrain.titan.checkpoints import complete_steps, remove_incomplete, retain

pytestmark = pytest.mark.distributed
STEPS = 4


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def server():
    with object_store() as running:
        yield running


@pytest.fixture(scope="module")
def uninterrupted(latents, tmp_path_factory) -> StageRun:
    run = stage_run(tmp_path_factory.mktemp("whole"), latents, config(steps=STEPS, interval=100))
    assert run_ranks(run.save(), 2) == [0, 0], (run.out / "log.0").read_text()[-2000:]
    return run


def prepared(like: StageRun, out: Path, folder: str = "", **checkpoint) -> StageRun:
    settings = CheckpointConfig(**{"interval": 1, "asynchronous": False, "folder": folder, **checkpoint})
    run = stage_run(out, like.latents, dataclasses.replace(like.config, checkpoint=settings))
    check_checkpoints(run)
    return run


def assert_same_weights(a: StageRun, b: StageRun) -> None:
    for name in ("model.safetensors", "ema.safetensors"):
        assert (a.out / "model" / name).read_bytes() == (b.out / "model" / name).read_bytes(), name


@pytest.fixture(scope="module")
def latents_in_store(server, latents) -> Path:
    folder = place(f"s3://{BUCKET}/latents")
    for file in latents.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(latents).as_posix()).write_bytes(file.read_bytes())
    return folder


@pytest.mark.slow
def test_data_and_states_in_a_store_train_as_local_ones_do(server, latents_in_store, uninterrupted, tmp_path):
    run = prepared(
        dataclasses.replace(uninterrupted, latents=latents_in_store), tmp_path / "run", f"s3://{BUCKET}/both"
    )
    assert run_ranks(run.save(), 2, endpoint=server.endpoint) == [0, 0], (run.out / "log.0").read_text()[
        -2000:
    ]
    assert_same_weights(run, uninterrupted)


@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_states_in_a_store_are_kept_listed_and_resumed_exactly(server, uninterrupted, tmp_path, asynchronous):
    run = prepared(
        uninterrupted, tmp_path / "run", f"s3://{BUCKET}/exact-{asynchronous}", asynchronous=asynchronous
    )
    assert run_ranks(run.save(), 2, "kill@3", endpoint=server.endpoint) == [-9, -9]
    assert complete_steps(run.checkpoints)[-1] == (2 if asynchronous else 3)
    assert {path.name for path in list_folder(run.checkpoints / "step-2")} == {
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    }
    assert not (run.out / "checkpoint").exists()
    assert run_ranks(run.save(), 2, endpoint=server.endpoint) == [0, 0], (run.out / "log.0").read_text()[
        -2000:
    ]
    assert_same_weights(run, uninterrupted)
    assert complete_steps(run.checkpoints) == [3, 4]


@pytest.mark.slow
def test_another_number_of_ranks_reads_them(server, uninterrupted, tmp_path):
    run = prepared(uninterrupted, tmp_path / "run", f"s3://{BUCKET}/reshard")
    assert run_ranks(run.save(), 2, "kill@4", endpoint=server.endpoint) == [-9, -9]
    assert run_ranks(run.save(), 1, endpoint=server.endpoint) == [0]  # exports what it read
    assert_same_weights(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "store"])
@pytest.mark.parametrize("moment", ["dead-in-step@3", "dead-in-save@3"])
def test_a_killed_rank_ends_the_others_and_nothing_is_lost(server, uninterrupted, tmp_path, where, moment):
    run = prepared(uninterrupted, tmp_path / "run", f"s3://{BUCKET}/{moment}" if where == "store" else "")
    started = time.monotonic()
    assert run_ranks(run.save(), 2, moment, endpoint=server.endpoint) == [3, -9]
    assert time.monotonic() - started < 60
    assert "lost another rank" in (run.out / "log.0").read_text()
    assert complete_steps(run.checkpoints) == [1, 2]
    assert run_ranks(run.save(), 2, endpoint=server.endpoint) == [0, 0]
    assert_same_weights(run, uninterrupted)


@pytest.mark.slow
def test_a_store_that_goes_away_during_a_save(uninterrupted, tmp_path):
    with object_store() as server:
        run = prepared(uninterrupted, tmp_path / "run", f"s3://{BUCKET}/outage")
        asked = run.out / "outage"

        def stop_when_asked() -> None:
            while not asked.exists():
                time.sleep(0.02)
            server.stop()
            asked.unlink()

        watch = threading.Thread(target=stop_when_asked, daemon=True)
        watch.start()
        started = time.monotonic()
        assert run_ranks(run.save(), 2, "outage@3", endpoint=server.endpoint) == [2, 2]
        assert time.monotonic() - started < 60
        line = (run.out / "error.txt.1").read_text()
        assert (
            line.count("\n") == 1 and f"s3://{BUCKET}/outage/stage1: checkpoint could not be written" in line
        )
        assert "the store does not answer" in line and "step 2 is intact; run again to resume" in line
        server.start()
        assert complete_steps(run.checkpoints) == [1, 2]
        assert run_ranks(run.save(), 2, endpoint=server.endpoint) == [0, 0]
        assert_same_weights(run, uninterrupted)


def test_a_place_of_another_run_is_refused(server, uninterrupted, tmp_path):
    folder = f"s3://{BUCKET}/claimed"
    run = prepared(uninterrupted, tmp_path / "a", folder)
    check_checkpoints(run)
    with pytest.raises(ValueError, match=r"s3://.*/claimed/stage1: trained with .*\(seed \d+, asked for 5\)"):
        check_checkpoints(dataclasses.replace(run, config=dataclasses.replace(run.config, seed=5)))
    nowhere = dataclasses.replace(run.config.checkpoint, folder="s3://nowhere/run")
    with pytest.raises(FileNotFoundError, match="the bucket does not exist"):
        check_checkpoints(
            dataclasses.replace(run, config=dataclasses.replace(run.config, checkpoint=nowhere))
        )


def test_retention_and_unfinished_folders_in_a_store(server):
    folder = place(f"s3://{BUCKET}/retention")
    for step in range(1, 8):
        (folder / f"step-{step}" / "__0_0.distcp").write_text("x")
        if step != 7:
            (folder / f"step-{step}" / ".metadata").write_text("x")
    assert complete_steps(folder) == [1, 2, 3, 4, 5, 6]
    assert retain(folder, keep_last=2, keep_every=3) == complete_steps(folder) == [3, 5, 6]
    assert remove_incomplete(folder) == [7]
    assert [path.name for path in list_folder(folder)] == ["step-3", "step-5", "step-6"]
