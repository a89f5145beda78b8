import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from align_world import align_run, config, metrics, run_align, write_world
from filelock import FileLock
from ray.exceptions import AuthenticationError
from ray_world import Driver, all_options, ledger, no_driver_outlives_its_test  # noqa: F401
from safetensors.torch import load_file

from experiments.commands.align import address_of
from experiments.scoring.latents import options_for
from finetune.align_run import AlignRun
from finetune.executor import RoundScores
from finetune.launch import align_model, alone
from finetune.recipe import AlignConfig
from finetune.scores import Scores
from finetune.types import joined, take
from orchestration import ray_security
from orchestration.align import align_on_ray
from orchestration.cluster import connected, shared_gpus
from orchestration.config import RayConfig, RewardPool
from orchestration.round import Unit
from orchestration.tasks import Origin, ScoreGatherer, TaskScores, clip_tasks
from orchestration.versions import Ledger, Versions
from pretrain.config import override
from pretrain.randomness import stable_hash


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def both() -> AlignConfig:
    """Two rounds of nft, then two of grpo, whose ratio must be 1 where the clips are the policy's own."""
    return config(("nft", "grpo"), rounds=2, phase={"steps_per_epoch": 2, "rollout_batch": 3})


def adapter(run: AlignRun) -> dict[str, torch.Tensor]:
    return load_file(run.out / "adapter" / "adapter_model.safetensors")


def distance(run: AlignRun, other: AlignRun) -> float:
    found, expected = adapter(run), adapter(other)
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_ray_aligns_as_local_ranks_do(world, tmp_path):
    local, remote = (
        align_run(world, tmp_path / "local", both()),
        align_run(world, tmp_path / "remote", both()),
    )
    driver = Driver(remote.out)
    assert run_align(local, world_size=2) == [0, 0], (local.out / "log.0").read_text()[-2000:]
    assert driver.wait() == 0, driver.said()[-2000:]
    assert distance(remote, local) <= 1e-5
    assert max(float(value.abs().max()) for value in adapter(local).values()) > 1e-3
    ours, theirs = metrics(local), metrics(remote)
    assert [row["step"] for row in theirs] == [0, 1, 2, 3, 4]
    for row, other in zip(ours, theirs, strict=True):
        same = {name: value for name, value in row.items() if not name.startswith(("seconds", "memory"))}
        assert same.keys() <= other.keys()
        for name, value in same.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert_ledger_is_whole(remote, ["0-old", "1-old", "2-default", "3-default"])
    assert sorted(path.name for path in (remote.out / "samples").iterdir()) == [
        "round-0",
        "round-2",
        "round-4",
    ]
    assert json.loads((remote.out / "state.json").read_text())["status"] == "finished"
    assert [path.name for path in (remote.out / "published").iterdir()] == ["version-4-default.safetensors"]


def assert_ledger_is_whole(run: AlignRun, versions: list[str]) -> None:
    """Every sample of every round, once."""
    from finetune.prompts import prompts_of_round, read_prompt_set

    prompts = read_prompt_set(run.prompts, run.config)
    rows = ledger(run.out)
    assert [(row["round"], row["version"]) for row in rows] == list(enumerate(versions, start=1))
    for index, row in enumerate(rows):
        drawn = prompts_of_round(prompts, run.config, 4, index)
        assert row["samples"] == sorted(
            stable_hash(prompt.data_id, k) for prompt in drawn for k in range(4)
        ), row["round"]


def test_tasks_are_the_batches_of_the_ranks():
    plan = config(phase={"rollout_batch": 3}).objectives()[0].rollout()
    rows = [object() for _ in range(4)]
    tasks = list(clip_tasks(rows, 2, plan, (0, 7), "7-old"))  # type: ignore[arg-type]
    assert [(task.rank, task.start, task.end) for task in tasks] == [
        (rank, *cut) for rank in (0, 1) for cut in ((0, 3), (3, 6), (6, 8))
    ]
    prompts = [row for task in tasks for row in task.prompts]
    assert [rows.index(row) for row in prompts] == [place for place in range(4) for _ in range(4)]


def test_joined_is_take_backwards():
    scored = TaskScores(Scores({}), torch.arange(6), torch.arange(6) * 7, "0", (ORIGIN, ORIGIN))
    parts = [take(scored, rows) for rows in torch.arange(6).split(4)]
    assert torch.equal(joined(parts).sample_ids, scored.sample_ids) and len(parts[1].groups) == 2


ORIGIN = Origin("rollout 0", 11, 1.0)


def answer(
    warm: list[float], ids: list[int], version: str = "0-old", process: int = 11, **values: list[float]
) -> TaskScores:
    found = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in {"warm": warm, **values}.items()
        if value
    }
    scores = Scores(found, reasons={"warm": "silent"} if any(value != value for value in warm) else {})
    return TaskScores(
        scores,
        torch.tensor(ids) // 10,
        torch.tensor(ids),
        version,
        (ORIGIN, Origin("rewards 0", process, 2.0)),
    )


def gathered(*units: Mapping[str, TaskScores], answers: ScoreGatherer | None = None) -> RoundScores:
    plan = config(phase={"rollout_batch": 1, "clips_per_prompt": 1, "steps_per_epoch": 1}).held_out_plan()
    tasks = list(clip_tasks([object()] * 2, 1, plan, (0, 0), "0-old"))  # type: ignore[arg-type]
    made = [Unit(task, None, dict(scores)) for task, scores in zip(tasks, units, strict=True)]
    return (answers or ScoreGatherer(config())).gathered(made)


def test_answers_of_pools_are_put_together_in_order():
    nan = float("nan")
    found = gathered(
        {"a": answer([1.0], [10]), "b": answer([], [10], bright=[5.0])},
        {"a": answer([nan], [20]), "b": answer([], [20])},
    )
    assert (
        found.groups.tolist() == [1, 2] and found.values["warm"][0] == 1.0 and found.values["warm"][1].isnan()
    )
    assert (
        found.means["reward/warm"] == 1.0
        and found.means["unscored/warm"] == 0.5
        and found.means["reward/bright"] == 5.0
    )
    assert found.means["work_seconds/rollout"] == 2.0 and found.means["work_seconds/score"] == 8.0
    assert found.reasons == {"warm": "silent"}


def test_scores_of_other_clips_are_refused():
    with pytest.raises(ValueError, match="other clips"):
        gathered({"a": answer([1.0], [10]), "b": answer([], [20])}, {"a": answer([1.0], [20])})
    with pytest.raises(ValueError, match="other clips"):
        gathered({"a": answer([1.0], [10], version="1-old")}, {"a": answer([1.0], [20])})


def test_a_replaced_process_is_counted_once():
    answers = ScoreGatherer(config())
    gathered({"a": answer([1.0], [10])}, {"a": answer([1.0], [20], process=12)}, answers=answers)
    gathered({"a": answer([1.0], [10], process=12)}, {"a": answer([1.0], [20], process=12)}, answers=answers)
    assert answers.restarts() == 1 and answers.restarts() == 0


def test_the_ledger_forgets_what_is_played_again_and_half_rows(tmp_path):
    book = Ledger(tmp_path)
    for rounds in (1, 2, 3):
        book.add(rounds, "nft", f"{rounds - 1}-old", [3, 1, 2], 0)
    with book.path.open("a") as file:
        file.write('{"round": 4, "ta')
    assert [row["round"] for row in book.rows()] == [1, 2, 3] and book.rows()[0]["samples"] == [1, 2, 3]
    book.cut(1)
    book.add(2, "nft", "1-old", [4], 1)
    assert [(row["round"], row["clips"], row["restarts"]) for row in book.rows()] == [(1, 3, 0), (2, 1, 1)]


def test_versions_come_back_from_disk_and_damaged_ones_are_refused(tmp_path):
    given = {"a.lora_A.weight": torch.arange(4.0)}
    Versions(tmp_path, dict).publish(3, "old", given)
    again = Versions(tmp_path, dict)
    assert torch.equal(again.reference(3, "old")["a.lora_A.weight"], given["a.lora_A.weight"])
    with pytest.raises(ValueError, match=r"version-2-old.*start over"):
        again.reference(2, "old")
    again.path(3, "old").write_bytes(b"half")
    again.forget()
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        again.reference(3, "old")
    again.retain(4)
    assert list((tmp_path / "published").iterdir()) == []


def test_a_version_made_again_is_another_to_the_workers(tmp_path):
    """A worker that idled meanwhile would take its weights for the ones that were made again, which may
    differ by rounding."""
    versions = Versions(tmp_path, dict)
    versions.publish(3, "old", {"a": torch.zeros(1)})
    before = versions.key("3-old")
    versions.forget()
    versions.publish(3, "old", {"a": torch.ones(1)})
    assert versions.key("3-old") != before and before not in versions.references
    assert versions.references[versions.key("3-old")]["a"] == versions.reference(3, "old")["a"] == 1.0


def test_pools_share_the_rewards():
    split = RayConfig(pools={"rest": RewardPool(), "speech": RewardPool(rewards=("wer",))})
    assert split.rewards_of(["sync", "wer", "sim"]) == {"rest": ("sync", "sim"), "speech": ("wer",)}
    assert split.rewards_of(["wer"]) == {"speech": ("wer",)}
    with pytest.raises(ValueError, match=r"'wer' is not in the rubric.*sync"):
        split.rewards_of(["sync"])
    with pytest.raises(ValueError, match="in two pools"):
        dataclasses.replace(split, pools={**split.pools, "more": RewardPool(rewards=("wer",))}).rewards_of(
            ["wer"]
        )
    with pytest.raises(ValueError, match="2 pools without named rewards"):
        RayConfig(pools={"a": RewardPool(), "b": RewardPool()}).rewards_of(["wer"])
    options = {"codec": "c", "weights": {"wer": 1.0, "sync": 2.0}, "options": {"wer": {"x": 1}}, "fps": 24.0}
    assert options_for(options, ["sync"]) == {
        "codec": "c",
        "weights": {"sync": 2.0},
        "options": {},
        "fps": 24.0,
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"stalenes": 1}, "stalenes: unknown key.*staleness"),
        ({"rollout": {"worker": 3}}, "rollout.worker: unknown key.*workers"),
        ({"pools": {"rewards": {"reward": ["x"]}}}, "reward: unknown key.*rewards"),
        ({"staleness": -1}, "staleness must be at least 0"),
        ({"rollout": {"workers": 0}}, "workers and in_flight must be at least 1"),
        ({"object_store_mb": 10}, "at least 80"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        override(RayConfig(), values)


def test_pools_are_added_by_name():
    given = {
        "speech": {"rewards": ["wer"], "num_gpus": 1.0, "runtime_env": {"pip": ["x"], "env_vars": {"A": "b"}}}
    }
    pools = override(RayConfig(), {"pools": given}).pools
    assert pools["rewards"] == RewardPool()
    assert pools["speech"] == RewardPool(
        rewards=("wer",), num_gpus=1.0, runtime_env={"pip": ["x"], "env_vars": {"A": "b"}}
    )


@pytest.mark.parametrize(
    ("there", "ranks", "workers"),
    [(0, 2, 2), (1, 1, 2), (2, 2, 2), (2, 2, 3), (8, 8, 8), (8, 4, 4), (3, 2, 5)],
)
def test_gpus_are_shared_so_that_all_fit_and_ranks_have_their_own(there, ranks, workers):
    of_rank, of_worker = shared_gpus(there, ranks, workers)
    assert (of_rank, of_worker) == (0, 0) if not there else of_rank > 0.5
    left = [1.0] * there
    for size, count in ((of_rank, ranks), (of_worker, workers)):
        for _ in range(count if there else 0):  # as Ray packs: wherever it fits
            place = next(place for place, room in enumerate(left) if room >= size - 1e-9)
            left[place] -= size


@pytest.mark.parametrize(
    "error", [Exception("The current node timed out during startup."), AuthenticationError("no token")]
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch, error: Exception):
    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(ray_security, "answers_without_token", lambda address: False)
    with pytest.raises(
        OSError, match=r"^Ray at 10\.0\.0\.1:6379 cannot be reached \(.+\); `ray start --head` starts one$"
    ):
        with connected("10.0.0.1:6379", RayConfig(), 2):
            pass


def test_a_cluster_gets_the_token_that_ray_has(monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray_security, "answers_without_token", lambda address: False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ValueError, match=r"no token here .*--insecure-ray"):
        with connected("10.0.0.1:6379", RayConfig(), 2):
            pass
    with connected("10.0.0.1:6379", RayConfig(), 2, insecure=True):
        assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / "token").write_text("secret")
    with connected("10.0.0.1:6379", RayConfig(), 2):
        assert os.environ.get("RAY_AUTH_MODE") == "token"
    assert (tmp_path / "token").stat().st_mode & 0o77 == 0
    monkeypatch.delenv("RAY_AUTH_MODE")


def test_addresses():
    assert (address_of(None), address_of(()), address_of(("local",)), address_of(("head:6379",))) == (
        "",
        "local",
        "local",
        "head:6379",
    )
    with pytest.raises(ValueError, match="recipe goes before"):
        address_of(("mini",))
    with pytest.raises(ValueError, match="one address"):
        address_of(("a:1", "b:2"))


def test_one_alignment_at_a_time_in_a_folder(world, tmp_path):
    run = align_run(world, tmp_path / "a", config())
    run.out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(run.out.with_name(f".{run.out.name}.lock")):  # as another command holds it
        with pytest.raises(ValueError, match="another alignment is at work here"):
            align_on_ray(run, 2, RayConfig(), all_options)
        with pytest.raises(ValueError, match="another alignment is at work here"):
            align_model(run, 2)
    with alone(run.out):
        pass


def test_staleness_is_part_of_what_a_run_is(world, tmp_path):
    run = align_run(world, tmp_path, config())
    stale = dataclasses.replace(run, staleness=1)
    assert run.recipe_hash() != stale.recipe_hash() and AlignRun.load(stale.save()).staleness == 1
