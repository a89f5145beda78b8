"""What the benchmarks compute from times, and that every contestant does the same work."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmarks.full_step import ModelStep, measure
from experiments.benchmarks.harness import race, ratio
from experiments.benchmarks.peers.__main__ import earlier
from experiments.benchmarks.peers.contestants import generation_step, ltx2, ours, training_step, wan
from experiments.benchmarks.peers.shapes import SHAPES
from pretrain.model.shell import AVTransformer

CPU = torch.device("cpu")
TINY = replace(
    SHAPES["mini_joint"],
    width=32,
    heads=2,
    ffn=48,
    alignment=1,
    fusion=1,
    batch=2,
    frames=2,
    audio=5,
    context=4,
    text_width=24,
)


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=20), st.floats(0.1, 10))
def test_a_peer_that_takes_k_times_as_long_is_k_times_as_slow(seconds: list[float], k: float) -> None:
    found = ratio(seconds, [k * value for value in seconds])
    assert found["ratio"] == pytest.approx(k, abs=1e-3) and found["low"] == pytest.approx(
        found["high"], abs=2e-3
    )
    assert found["rounds"] == len(seconds)


def test_a_race_takes_turns() -> None:
    calls: list[str] = []
    times = race(lambda: calls.append("a"), lambda: calls.append("b"), 0.0, CPU, least=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(part) for part in times] == [3, 3]


@pytest.mark.parametrize("audio", [5, 0])
def test_contestants_answer_for_the_same_tokens_and_train_every_block(audio: int) -> None:
    shape = replace(TINY, audio=audio)
    for build in (ours, ltx2 if audio else wan):
        model, forward = build(shape, torch.bfloat16, CPU)
        answers = forward()
        assert [answer.numel() for answer in answers] == [
            2 * shape.video_tokens * 192,
            *([2 * audio * 128] if audio else []),
        ]
        training_step(model, forward)()
        blocks = _blocks(model)
        assert len(blocks) == shape.depth
        assert all(
            any(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters()) for block in blocks
        )
        generation_step(forward)()


def _blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    if isinstance(model, AVTransformer):
        return [block for group in model.block_groups() for block in group]
    return list(
        model.get_submodule("blocks" if hasattr(model, "blocks") else "transformer_blocks").children()
    )


@pytest.mark.parametrize("part", ["lora", "generate"])
def test_parts_of_a_full_step_on_a_small_model(part: str) -> None:
    step = ModelStep("debug", 5, 64, 64, compiled=False, device=CPU)
    shape = step.shape
    ((name, found),) = measure(step, [part], 2, 1e9)
    assert name == part
    assert found["tokens_per_s"] == pytest.approx(
        (shape.video + shape.audio) / found["seconds"]["low"], rel=1e-2
    )
    assert found["share_of_ceiling"] > 0


def test_races_of_the_same_day_and_machine_are_kept(tmp_path) -> None:
    file, today = tmp_path / "races.json", {"date": "2026-11-22", "hardware": "one"}
    assert earlier(file, today) == {**today, "races": {}}
    held = {**today, "races": {"mini/bf16": 1}, "scaling": []}
    file.write_text(json.dumps(held))
    assert earlier(file, today) == held
    assert earlier(file, {**today, "hardware": "other"}) == {
        "date": "2026-11-22",
        "hardware": "other",
        "races": {},
    }
