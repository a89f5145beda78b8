import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from align_world import align_run, config, error, metrics, run_align, write_world
from safetensors.torch import load_file

from finetune.adapters import adapted_model, read_adapter
from finetune.advantage import Floor
from finetune.align_run import AlignRun
from finetune.executor import RoundScores
from finetune.launch import align_model, describe
from finetune.loop import Alignment
from finetune.objectives.grpo import GrpoPhase
from finetune.objectives.nft import NftPhase
from finetune.progress import AlignProgress
from finetune.recipe import AlignConfig, RubricConfig, StopConfig
from pretrain.config import from_json, override, to_json
from pretrain.flow.guidance import GuidanceScales
from pretrain.model.checkpoint import load_model
from pretrain.sampling import SamplerConfig
from pretrain.titan.checkpoints import complete_steps

distributed = pytest.mark.distributed


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world) -> AlignRun:
    """Three rounds of nft and one of rwr, uninterrupted."""
    run = align_run(world, world / "whole", recipe())
    assert run_align(run) == [0], (run.out / "log.0").read_text()[-2000:]
    return run


def recipe() -> AlignConfig:
    return config(("nft", "rwr"), rounds=3).with_phase("rwr", rounds=1)


def state(run: AlignRun) -> dict:
    return json.loads((run.out / "state.json").read_text())


def assert_same_result(run: AlignRun, whole: AlignRun) -> None:
    for name in ("adapter/adapter_model.safetensors", "model/ema.safetensors"):
        assert (run.out / name).read_bytes() == (whole.out / name).read_bytes(), name
    rewards = [
        [(row["step"], row.get("reward/warm"), row.get("held_out_total")) for row in metrics(each)]
        for each in (run, whole)
    ]
    assert rewards[0] == rewards[1]


@distributed
def test_what_a_run_leaves(whole, world):
    rows = metrics(whole)
    assert [(row["step"], row.get("task")) for row in rows] == [
        (0, None),
        (1, "nft"),
        (2, "nft"),
        (3, "nft"),
        (4, "rwr"),
    ]
    for row in rows[1:]:
        assert {
            "reward/warm",
            "part/warm.twice",
            "guardrail/flagged",
            "contrast",
            "skipped_groups",
            "grad_norm",
        } <= row.keys()
        assert {"seconds/rollout", "seconds/score", "seconds/update", "seconds_per_step"} <= row.keys()
        assert row["clips"] == 16 and row["part/warm.twice"] == pytest.approx(2 * row["reward/warm"])
    assert rows[1]["nft/from_old_audio"] > 0 and rows[1]["nft/from_reference_audio"] > 0
    assert state(whole) == {
        "status": "finished",
        "stage": "align",
        "step": 4,
        "steps": 4,
        "model_id": state(whole)["model_id"],
    }
    assert complete_steps(whole.out / "checkpoint") == [3, 4]
    assert sorted(path.name for path in (whole.out / "samples").iterdir()) == [
        "round-0",
        "round-2",
        "round-3",
        "round-4",
    ]
    model, described = load_model(whole.out / "model")
    assert described.facts["checkpoint_id"] == state(whole)["model_id"]
    assert described.facts["codec_id"] == load_model(world / "base")[1].facts["codec_id"]
    adapted, _ = adapted_model(world / "base", whole.out / "adapter")
    base = load_model(world / "base")[0].state_dict()
    assert any(not torch.equal(value, base[name]) for name, value in model.state_dict().items())
    assert adapted.args == model.args


@distributed
def test_trackers_hear_of_rounds_and_of_sample_clips(world, tmp_path):
    spool = {"experiments.runs.tracker:SpoolTracker": {"folder": str(tmp_path / "spool")}}
    run = dataclasses.replace(align_run(world, tmp_path / "run", config()), trackers=spool)
    run.save()
    assert run_align(run) == [0]
    events = [json.loads(line) for line in (tmp_path / "spool" / "events.jsonl").read_text().splitlines()]
    assert [event["folder"] for event in events if event["kind"] == "artifact"] == [
        "samples/round-0",
        "samples/round-2",
        "",
    ]
    assert [event["step"] for event in events if event["kind"] == "metrics"] == [0, 1, 2]
    assert events[-2]["kind"] == "tags" and events[-2]["values"]["status"] == "finished"


@distributed
@pytest.mark.parametrize(
    "algorithm", ["nft", "grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rwr", "awm"))]
)
def test_the_reward_rises_on_held_out_prompts(world, tmp_path, algorithm):
    made = config((algorithm,), rounds=4, stop=StopConfig(prompts=2, every=4))
    run = align_run(world, tmp_path, made)
    assert run_align(run) == [0], (run.out / "log.0").read_text()[-2000:]
    before, after = (row["held_out/reward/warm"] for row in metrics(run) if "held_out_total" in row)
    assert after > before


@distributed
@pytest.mark.parametrize(  # within a phase, and between two of them
    "after_round", [pytest.param(1, marks=pytest.mark.slow), 3]
)
def test_killed_between_rounds_ends_bit_equal(world, whole, tmp_path, after_round):
    run = align_run(world, tmp_path, recipe())
    assert run_align(run, mishap=f"kill@{after_round}") == [-9]
    assert complete_steps(run.out / "checkpoint")[-1] == after_round
    assert run_align(run) == [0]
    assert_same_result(run, whole)


@distributed
def test_sigterm_keeps_the_last_round_and_exits_0(world, whole, tmp_path):
    run = align_run(world, tmp_path, recipe())
    assert run_align(run, mishap="term@2") == [0]
    assert (state(run)["status"], state(run)["step"]) == ("interrupted", 1)
    assert not (run.out / "model").exists()
    assert run_align(run) == [0]
    assert_same_result(run, whole)


@distributed
@pytest.mark.parametrize(
    ("call", "every", "kept"),
    [
        # scored are the held-out prompts, rounds 1 and 2, and the held-out ones again: round 2
        pytest.param(3, 1, 1, marks=pytest.mark.slow),
        pytest.param(3, 4, 1, marks=pytest.mark.slow),  # saved because of the failure
        (4, 1, 1),  # round 2 had learned
    ],
)
def test_a_reward_that_raises_loses_the_round_and_nothing_else(world, whole, tmp_path, call, every, kept):
    made = dataclasses.replace(recipe(), checkpoint_every=every)
    run = align_run(world, tmp_path, made, fail_at=call)
    assert run_align(run) == [2]
    assert error(run).startswith(
        f"round 2 is lost, the saved state is that of round {kept}: reward warm failed: its network is gone"
    )
    assert complete_steps(run.out / "checkpoint") == [kept]
    mended = align_run(world, tmp_path, made)
    assert run_align(mended) == [0]
    assert_same_result(mended, whole)


@distributed
@pytest.mark.parametrize(
    ("wrong", "says"), [("flat", "warm: all from 0.5 to 0.5"), ("nan", "warm: all NaN, silent")]
)
def test_rewards_without_contrast_end_the_run_with_a_reason(world, tmp_path, wrong, says):
    run = align_run(world, tmp_path, config(rounds=5, stop=StopConfig(prompts=0)), **{wrong: True})
    assert run_align(run) == [2]
    line = error(run)
    assert (
        "told the clips of any prompt apart for 2 rounds" in line
        and says in line
        and "saved state is that of round 1" in line
    )
    assert complete_steps(run.out / "checkpoint") == [1]
    assert metrics(run)[0]["contrast"] == 0.0 and "nft/loss" not in metrics(run)[0]


@distributed
def test_a_reward_that_scores_no_held_out_clip_ends_the_run_before_it_trains(world, tmp_path):
    run = align_run(world, tmp_path, config(), nan=True)
    assert run_align(run) == [2]
    assert "reward warm could score none of 2 clips (silent), so no round can be compared by it" in error(run)
    mended = align_run(world, tmp_path, config())
    assert run_align(mended) == [0] and metrics(mended)[-1]["held_out/lost/warm"] == 0.0


@distributed
def test_patience_ends_a_phase_and_the_best_weights_are_exported(world, tmp_path):
    made = config(rounds=6, stop=StopConfig(prompts=2, every=1, patience=2))
    run = align_run(
        world, tmp_path, made, falls_from=4
    )  # scored before are the held-out prompts, round 1, and the held-out ones again
    assert run_align(run) == [0]
    totals = [row["held_out_total"] for row in metrics(run)]
    assert len(totals) == 4 and totals.index(max(totals)) == 1
    assert read_adapter(run.out / "adapter")[0].facts["best_round"] == 1
    one_round = align_run(
        world, tmp_path / "one", config(rounds=1, stop=StopConfig(prompts=2, every=1, patience=2))
    )
    assert run_align(one_round) == [0]
    best, first = (load_file(each.out / "adapter" / "adapter_model.safetensors") for each in (run, one_round))
    assert best.keys() == first.keys() and all(
        torch.equal(value, first[name]) for name, value in best.items()
    )


@distributed
@pytest.mark.parametrize(("judge", "alarm"), [(-1.0, 1.0), (1.0, 0.0)])
def test_a_judge_that_falls_while_the_reward_rises_sounds_an_alarm(world, tmp_path, judge, alarm):
    stop = StopConfig(prompts=2, every=4, patience=2)
    rubric = RubricConfig(audio={"warm": 1.0}, sync={}, watched=("ear",))
    run = align_run(world, tmp_path, config(rounds=4, stop=stop, rubric=rubric), judge=judge)
    assert run_align(run) == [0]
    rows = metrics(run)
    last, best = rows[-1], read_adapter(run.out / "adapter")[0].facts["best_round"]
    assert rows[0]["held_out/judge/ear"] == pytest.approx(judge * rows[0]["held_out/reward/warm"])
    assert last["held_out_total"] > 0 and last["alarm/ear"] == alarm
    assert last["held_out/judge_change/ear"] * judge > 0
    # weights that a judge rejects are never the best ones
    assert best == (0 if alarm else 4)
    assert ("ALARM: ear fell" in describe(last)) == bool(alarm)


class Recorder:
    """An executor that notes what it is called for; its rewards are `values`, or raise."""

    def __init__(self, values: list[float] | Exception) -> None:
        self.values, self.calls = values, list[str]()

    def load(self) -> AlignProgress:
        return AlignProgress(phase=0, baseline={"warm": [0.0, 1.0]})

    def collect(self, place: int, index: int, first: int):
        if isinstance(self.values, Exception):
            raise self.values
        scores = {"warm": torch.tensor(self.values, dtype=torch.float64)}
        return RoundScores(torch.tensor([0, 0, 1, 1]), scores, {"reward/warm": 0.5}), {
            "rollout": 2.0,
            "score": 1.0,
        }

    def learn(self, place: int, index: int, advantage) -> dict[str, float]:
        self.calls.append("learn")
        return {"nft/loss": 40.0}

    def __getattr__(self, name: str):
        return lambda *given: self.calls.append(name)


def played(world: Path, out: Path, values: list[float] | Exception, **changes: Any) -> tuple[Recorder, list]:
    rows: list[tuple[dict, int]] = []
    executor = Recorder(values)
    run = align_run(world, out, config(rounds=1, stop=StopConfig(prompts=0), **changes))
    alignment = Alignment(run, executor, lambda row, step: rows.append((row, step)))  # type: ignore[arg-type]
    alignment.resume()
    alignment.run_rounds()
    return executor, rows


def test_a_round_raises_before_it_learns(world, tmp_path):
    with pytest.raises(ValueError, match="warm failed"):
        played(world, tmp_path, ValueError("reward warm failed"))


def test_rounds_of_prompts_all_beyond_a_floor_end_the_run_and_say_so(world, tmp_path):
    rubric = RubricConfig(audio={"warm": 1.0}, sync={}, floors={"warm": Floor(floor=2.5)})
    says = r"1 rounds \(warm: all from 0 to 2, 4 of 4 clips beyond the floor 2.5\)"
    with pytest.raises(ValueError, match=says):
        played(world, tmp_path, [0.0, 1.0, 2.0, 0.5], rubric=rubric, max_flat_rounds=1)


def test_a_round_logs_what_was_measured_with_its_seconds(world, tmp_path):
    executor, rows = played(world, tmp_path, [0.0, 1.0, 0.0, 1.0])
    assert executor.calls == ["learn", "update_old", "publish", "score_held_out", "save", "save"]
    [(row, step)] = rows
    assert step == 1 and (row["contrast"], row["nft/loss"], row["old_decay"]) == (1.0, 40.0, 0.0)
    assert row["seconds/rollout"] == 2.0 and row["seconds_per_step"] == pytest.approx(
        sum(value for name, value in row.items() if name.startswith("seconds/"))
    )


def test_config_survives_json_and_overrides_are_strict():
    made = AlignConfig()
    assert from_json(AlignConfig, json.loads(json.dumps(to_json(made)))) == made
    changed = override(
        made,
        {
            "sequence": ["rwr", "nft"],
            "nft": {"objective": {"beta": 0.5}},
            "rubric": {"sync": {"sync_mini": 2.0}},
        },
    )
    assert [each.name for each in changed.objectives()] == ["rwr", "nft"]
    nft = changed.phases["nft"]
    assert isinstance(nft, NftPhase) and nft.objective.beta == 0.5
    assert from_json(AlignConfig, json.loads(json.dumps(to_json(changed)))) == changed
    with pytest.raises(ValueError, match=r"nft.objective.betta.*beta"):
        override(made, {"nft": {"objective": {"betta": 0.5}}})
    with pytest.raises(ValueError, match=r"unknown algorithm 'ntf'.*nft"):
        AlignConfig(sequence=("ntf",))


def test_configs_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="steps_per_epoch 3 must divide clips_per_prompt 8"):
        NftPhase(steps_per_epoch=3)
    with pytest.raises(ValueError, match="without guidance"):
        GrpoPhase(sampler=SamplerConfig(solver="euler", steps=16, guidance=GuidanceScales()))
    with pytest.raises(ValueError, match="under two"):
        RubricConfig(audio={"a": 1.0}, sync={"a": 1.0})
    with pytest.raises(ValueError, match="weight above 0"):
        RubricConfig(audio={"a": -1.0}, sync={})
    with pytest.raises(ValueError, match="prompts_per_round 24 does not divide into 5"):
        AlignConfig().check_ranks(5)


def test_launch_refuses_before_anything_starts(world, tmp_path):
    run = dataclasses.replace(align_run(world, tmp_path / "a", config()), out=tmp_path / "b")
    with pytest.raises(ValueError, match="does not divide"):
        align_model(run, nproc=3)
    with pytest.raises(ValueError, match=r"10 prompts|8 prompts.*a round takes 40"):
        align_model(dataclasses.replace(run, config=config(phase={"prompts_per_round": 40})))
    with pytest.raises(FileNotFoundError, match="no such file"):
        align_model(dataclasses.replace(run, prompts=tmp_path / "none.jsonl"))
    assert not (tmp_path / "b" / "resolved.json").exists()
