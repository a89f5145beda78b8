"""Where `nava rollout` computes: the whole of it on a pretended GPU, and what is refused without one."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from align_world import config, write_world
from pretend_gpu import CPU, GPU, PretendGpu, pretend_gpu, value_of

from experiments.pipeline import rollout as stage
from experiments.pipeline.rollout import RolloutInputs, rollout_of
from finetune import make_rollouts as made
from finetune.make_rollouts import RolloutsConfig, make_rollouts
from finetune.recipe import StopConfig
from finetune.rollout_store import open_store
from pretrain.config import to_json
from pretrain.model.shell import AVTransformer

SIZES = config(stop=StopConfig(prompts=2))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def settings(**changes: Any) -> RolloutsConfig:
    given = {"clips_per_prompt": 2, "batch": 8, "bf16": False, "sampler": SIZES.deployed, **changes}
    return RolloutsConfig(**given)


def rolled(world: Path, out: Path, **changes: Any) -> dict[str, Any]:
    where = (world / "base", world / "codec", world / "prompts.jsonl", out)
    return make_rollouts(settings(**changes), SIZES, *where)


def test_model_and_clips_are_on_the_gpu_and_come_back_to_the_host(world, tmp_path, monkeypatch):
    """Everything is put there by the one `to(device)`; a tensor left on the CPU would raise."""
    rolled(world, tmp_path / "cpu")
    wanted = open_store(tmp_path / "cpu")
    seen: list[tuple[torch.device, torch.device]] = []
    stored: dict[str, Any] = {}
    forward = AVTransformer.forward

    def looked(model: AVTransformer, video: Any, audio: Any, conditioning: Any, *others: Any) -> Any:
        seen.append((video.latents.device, conditioning.text.device))
        return forward(model, video, audio, conditioning, *others)

    def write(out: Path, rows: Any, clips: Any, facts: dict[str, Any]) -> None:
        stored.update(clips=clips, facts=facts, crossings=gpus[0].places())

    gpus: list[PretendGpu] = []
    with ExitStack() as opened:
        load = made.load_model

        def loaded(*given: Any) -> Any:
            """A model whose move to the device brings the pretended GPU into being."""
            model, described = load(*given)

            def to(device: torch.device) -> AVTransformer:
                assert torch.device(device).type == "cuda"
                gpus.append(opened.enter_context(pretend_gpu()))
                return gpus[0].put(model)

            object.__setattr__(model, "to", to)
            return model, described

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(made, "load_model", loaded)
        monkeypatch.setattr(made, "device_of", lambda config: GPU)
        monkeypatch.setattr(made, "write_store", write)
        monkeypatch.setattr(AVTransformer, "forward", looked)
        facts = rolled(world, tmp_path / "gpu")
    assert seen and set(seen) == {(GPU, GPU)}
    assert facts["device"] == stored["facts"]["device"] == "cuda" and "device" not in wanted.facts
    (clips,) = stored["clips"]
    assert clips.video.device == clips.audio.device == CPU
    # two reads for each batch of clips, video and audio, and nothing else on the way
    batches = -(-facts["prompts"] // 4)
    assert stored["crossings"] == {"read finetune/rollout.py _sampled": 2 * batches}
    same = wanted.rollout(list(wanted.places))
    torch.testing.assert_close(value_of(clips.video), same.video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value_of(clips.audio), same.audio, rtol=1e-4, atol=1e-5)


def test_the_device_is_chosen_in_the_words_of_generate(monkeypatch, tmp_path):
    missing = tmp_path / "nothing"
    with pytest.raises(ValueError, match=r"^device cuda: this torch sees no GPU; set device to auto or cpu$"):
        make_rollouts(settings(device="cuda"), SIZES, missing, missing, missing, tmp_path / "out")
    with pytest.raises(ValueError, match=r"^rollouts: device must be auto, cpu or cuda, got 'tpu'$"):
        settings(device="tpu")
    with pytest.raises(ValueError, match=r"^rollouts: quantisation=int8 computes in bf16, and bf16 is false"):
        settings(quantisation="int8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [made.device_of(settings(device=name)).type for name in ("auto", "cpu")] == ["cuda", "cpu"]


def test_a_quantised_model_rolls_out_and_its_store_says_so(world, tmp_path):
    plain = rolled(world, tmp_path / "plain", bf16=True)
    found = rolled(world, tmp_path / "int8", bf16=True, quantisation="int8")
    assert found["quantisation"] == open_store(tmp_path / "int8").facts["quantisation"] == "int8"
    assert "quantisation" not in plain and plain["clips"] == found["clips"]
    one, other = (open_store(tmp_path / name) for name in ("plain", "int8"))
    first = list(one.places)[:4]
    near, far = one.rollout(first).video, other.rollout(first).video
    assert not torch.equal(near, far) and float((near - far).norm() / near.norm()) < 0.2


# Every field that says which clips a store holds, written out: a new one belongs here or into NEUTRAL.
COUNTS = {"clips_per_prompt", "sampler", "batch", "weights", "seed", "bf16", "quantisation"}


def test_every_field_is_decided_on_and_stores_from_before_a_field_keep_their_ids(world, tmp_path):
    assert {item.name for item in dataclasses.fields(RolloutsConfig)} == COUNTS | set(stage.NEUTRAL)
    assert not {"quantisation", "device"} & set(to_json(settings()))  # at their defaults
    where = (world / "base", world / "codec", world / "prompts.jsonl", tmp_path / "store")
    inputs = RolloutInputs(
        **dict(zip(("model", "codec", "prompts", "out"), where, strict=True)), config=settings(), sizes=SIZES
    )
    kept = rollout_of(inputs)
    made_at = (kept.folder / "store.json").stat().st_mtime_ns
    rollout_of(dataclasses.replace(inputs, config=settings(device="cpu")))
    assert (kept.folder / "store.json").stat().st_mtime_ns == made_at
    with pytest.raises(ValueError, match="a rollout store of another model, other prompts or settings"):
        rollout_of(dataclasses.replace(inputs, config=settings(bf16=True, quantisation="int8")))
