"""An objective from outside the package: advantage-weighted regression, named in the sequence by its dotted
name."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from align_world import align_run, config, metrics, run_align, write_world
from ray_world import Driver, ledger, no_driver_outlives_its_test  # noqa: F401
from safetensors.torch import load_file
from torch import Tensor

from finetune.align_run import AlignRun
from finetune.noising import Levels, both, draw, mean_square, metric, noised, usable
from finetune.objectives.base import Objective, Phase
from finetune.recipe import AlignConfig
from finetune.types import Key, ObjectiveLoss, Policy, RolloutsWithAdvantage
from pretrain.config import from_json, override, to_json
from pretrain.flow.path import velocity_target

NAME = "test_fifth_objective:Regression"


@dataclass(frozen=True, kw_only=True)
class RegressionPhase(Phase):
    temperature: float = 1.0


class Regression(Objective[RegressionPhase]):
    """Flow matching on the policy's own clips, each weighted by exp(advantage / temperature)."""

    name, phase_type = "awr", RegressionPhase

    def count(self, batch: RolloutsWithAdvantage) -> Tensor:
        return batch.valid.sum().double()

    def loss(self, policy: Policy, batch: RolloutsWithAdvantage, key: Key) -> ObjectiveLoss:
        clips, advantage = usable(batch), batch.advantage
        drawn = draw(clips, Levels(shift=5.0), key)
        found = both(policy.velocity("default", *noised(clips, drawn), clips.conditioning))
        per_clip = torch.zeros_like(drawn.weight)
        for name, velocity in zip(("video", "audio"), found, strict=True):
            target = velocity_target(getattr(clips, name), getattr(drawn, name))
            weight = torch.exp(getattr(advantage, name) / self.phase.temperature)
            per_clip = per_clip + weight * mean_square(velocity - target)
        total = torch.where(batch.valid, per_clip, 0.0).sum()
        return ObjectiveLoss(total, self.count(batch), {"loss": metric(per_clip, batch.valid)})


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def recipe() -> AlignConfig:
    """As a user sets it: the sequence, then fields of its section."""
    made = override(config(rounds=1), {"sequence": [NAME]})
    fields = {"rounds": 1, "prompts_per_round": 4, "clips_per_prompt": 4, "epochs": 1, "micro_batch": 8}
    made = override(made, {"awr": {**fields, "temperature": 0.5, "lr": 3e-3, "sampler": {"steps": 4}}})
    return override(made, {"stop": {"prompts": 0}})


def adapter(run: AlignRun) -> dict[str, Tensor]:
    return load_file(run.out / "adapter" / "adapter_model.safetensors")


def test_its_section_is_read_strictly_and_survives_json():
    made = recipe()
    phase = made.phases["awr"]
    assert isinstance(phase, RegressionPhase) and phase.temperature == 0.5
    assert from_json(AlignConfig, json.loads(json.dumps(to_json(made)))) == made
    with pytest.raises(ValueError, match=r"awr\.temprature: unknown key; did you mean 'temperature'"):
        override(made, {"awr": {"temprature": 1.0}})
    with pytest.raises(ValueError, match=r"awr: unknown key"):
        override(AlignConfig(), {"awr": {"temperature": 1.0}})
    with pytest.raises(ValueError, match=r"'never_allowed:Regression': module never_allowed is not allowed"):
        override(AlignConfig(), {"sequence": ["never_allowed:Regression"]})
    with pytest.raises(ValueError, match=r"awr\.prompts_per_round 4 does not divide into 3"):
        made.check_ranks(3)


@pytest.mark.distributed
def test_it_trains_on_a_local_rank_twice_alike(world, tmp_path):
    runs = [align_run(world, tmp_path / name, recipe()) for name in ("one", "two")]
    for run in runs:
        assert run_align(run) == [0], (run.out / "log.0").read_text()[-2000:]
        [row] = metrics(run)
        assert row["task"] == "awr" and row["awr/loss"] > 0 and row["optimizer_steps"] == 1
    first, second = map(adapter, runs)
    assert max(float(value.abs().max()) for name, value in first.items() if "lora_B" in name) > 1e-3
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.distributed
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_it_trains_on_ray_as_on_a_local_rank(world, tmp_path):
    local, remote = (align_run(world, tmp_path / name, recipe()) for name in ("local", "remote"))
    driver = Driver(remote.out, ranks=1)
    assert run_align(local) == [0], (local.out / "log.0").read_text()[-2000:]
    assert driver.wait() == 0, driver.said()[-2000:]
    found, expected = adapter(remote), adapter(local)
    assert found.keys() == expected.keys()
    assert max(float((found[name] - value).abs().max()) for name, value in expected.items()) <= 1e-5
    assert max(float(value.abs().max()) for name, value in found.items() if "lora_B" in name) > 1e-3
    assert [(row["task"], row["version"], row["clips"]) for row in ledger(remote.out)] == [
        ("awr", "0-default", 16)
    ]
