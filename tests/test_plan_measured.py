"""What a plan says is what a run holds: peaks of debug runs on the CPU, to 10 %."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from measured_memory import FLAVOR, FRAMES, RANK, SIDE, TEXT

from pretrain.model.flavors import flavor
from pretrain.model.plan import clip_shape, what_fits
from pretrain.model.plan_memory import Setup, memory_parts

ARGS = flavor(FLAVOR)
CLIP = clip_shape(ARGS, 4 * FRAMES - 3, 16 * SIDE, 16 * SIDE, 24.0, TEXT)
ONE: dict[str, Any] = {"on_cpu": True, "micro_batches": 1, "rank": RANK}
SETUPS = {
    "train": Setup(checkpointing="none", on_cpu=True),
    "align fp32 none": Setup(work="align", checkpointing="none", **ONE),
    "align int8 none": Setup(work="align", base="int8", checkpointing="none", **ONE),
    "align int8 full": Setup(work="align", base="int8", checkpointing="full", **ONE),
    "rollout fp32": Setup(work="rollout", **ONE),
    "rollout bf16": Setup(work="rollout", base="bf16", **ONE),
    "rollout int8": Setup(work="rollout", base="int8", **ONE),
    "generate fp32": Setup(work="generate", **ONE),
    "generate bf16": Setup(work="generate", base="bf16", **ONE),
    "generate int8": Setup(work="generate", base="int8", **ONE),
}


@pytest.mark.slow
def test_a_plan_is_what_a_run_holds():
    script = Path(__file__).with_name("measured_memory.py")
    found = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True)
    peaks = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert [row["name"] for row in peaks] == list(SETUPS)
    for row in peaks:
        planned = sum(memory_parts(ARGS, CLIP, SETUPS[row["name"]]).values())
        assert planned == pytest.approx(row["peak"], rel=0.1), row["name"]


def test_lighter_settings_are_asked_for_on_smaller_gpus():
    args = flavor("nava_6b")
    found = what_fits(args, clip_shape(args, 145, 704, 1280), Setup(gpus=8))
    assert found["train"]["24_gb"] == "" and found["generate"]["141_gb"] == "--base bf16"
    for flags in found.values():
        assert [bool(way) for way in flags.values()] == sorted(bool(way) for way in flags.values())
