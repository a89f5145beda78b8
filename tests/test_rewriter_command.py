import dataclasses
import json
import math

import pytest
from align_world import write_world
from rewriter_world import PAIRS, ROWS, small_model

from experiments.cli import main
from experiments.rewriter import overridden
from experiments.rewriter_clips import MAX_UNSCORED, RewriteClips
from experiments.scoring.config import reward_settings
from finetune.rewriter.config import DpoTuning, GrpoTuning
from pretrain.generation.config import GenerateConfig
from pretrain.prompt import parse, read_prompts

SMALL = [
    "--set",
    "steps=2",
    "--set",
    "batch=8",
    "--set",
    "micro_batch=8",
    "--set",
    "rank=4",
    "--set",
    "device=cpu",
]
GRPO = [*SMALL, "--set", "group=4", "--set", "completion_tokens=8"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with lm/ and prompts.jsonl to be in; nothing is sent to MLflow."""
    small_model(tmp_path / "lm")
    lines = [json.dumps({"prompt": row.prompt.text, "data_id": row.data_id}) + "\n" for row in ROWS]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
    return tmp_path


def line_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nava: ")]
    assert len(said) == 1
    return said[0]


@pytest.mark.slow
def test_grpo_is_a_tracked_run_that_is_kept(place, capsys):
    assert main(["rewriter", "grpo", "lm", "prompts.jsonl", *GRPO]) == 0
    assert (place / "out/rewriter/adapter/adapter_model.safetensors").is_file()
    assert (place / "out/rewriter/model/model.safetensors").is_file()
    record = json.loads((place / "out/runs/rewriter.json").read_text())
    assert record["config"]["algorithm"] == "grpo" and record["config"]["rewriter"]["steps"] == 2
    events = (place / "out/tracking" / record["key"] / "events.jsonl").read_text()
    assert (
        '"rewards/spans/mean"' in events and '"rewriter-adapter"' in events and "nava.parent_model" in events
    )
    capsys.readouterr()
    assert main(["rewriter", "grpo", "lm", "prompts.jsonl", *GRPO]) == 0
    assert "finished, with these inputs and settings; kept" in capsys.readouterr().out
    before = (place / "out/rewriter/adapter/adapter_model.safetensors").read_bytes()
    said = line_of(capsys, "rewriter", "grpo", "lm", "prompts.jsonl", *GRPO, "--set", "seed=3")
    assert (
        "trained with other inputs or settings (seed 0, asked for 3); give --resume-anyway to keep it" in said
    )
    assert "--move-aside to start over (what is there is moved to out/.trash), or --out for another" in said
    assert main(["rewriter", "grpo", "lm", "prompts.jsonl", *GRPO, "--set", "seed=3", "--resume-anyway"]) == 0
    assert "finished, kept as it is although seed 0 -> 3" in capsys.readouterr().out
    assert before == (place / "out/rewriter/adapter/adapter_model.safetensors").read_bytes()
    assert main(["rewriter", "grpo", "lm", "prompts.jsonl", *GRPO, "--set", "seed=3", "--move-aside"]) == 0
    (trashed,) = (place / "out/.trash").glob("rewriter-*")
    assert before == (trashed / "adapter/adapter_model.safetensors").read_bytes()
    assert before != (place / "out/rewriter/adapter/adapter_model.safetensors").read_bytes()
    longer = [*GRPO, "--set", "seed=3", "--set", "steps=3", "--resume-anyway"]
    assert main(["rewriter", "grpo", "lm", "prompts.jsonl", *longer]) == 0
    assert "goes on all the same from step 2 with steps 2 -> 3" in capsys.readouterr().out
    lines = (place / "out/rewriter/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    said = line_of(
        capsys, "rewriter", "grpo", "out/rewriter/model", "prompts.jsonl", *GRPO, "--no-resume"
    )  # on from what it made
    assert "out/rewriter/model: lies in out/rewriter, which this tuning replaces" in said
    assert (place / "out/rewriter/model/model.safetensors").is_file()


def write_rewrites(place) -> None:
    for name, side in (("good", "chosen"), ("bad", "rejected")):
        rows = [
            {
                "data_id": pair.case_id,
                "prompt": getattr(pair, side),
                "meta": {"rewrite": {"source": pair.source}},
            }
            for pair in PAIRS
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    votes = [
        {
            "user_id": "u",
            "case_id": pair.case_id,
            "left_model": "bad",
            "right_model": "good",
            "choice": "right",
            "ours_side": None,
        }
        for pair in PAIRS
    ]
    (place / "votes.jsonl").write_text(
        "".join(json.dumps({**vote, "simulated": True}) + "\n" for vote in votes)
    )


def test_dpo_learns_from_votes_and_says_whose(place, capsys):
    write_rewrites(place)
    assert (
        main(
            ["rewriter", "dpo", "lm", "votes.jsonl", *SMALL, "--rewrites", "good=good.jsonl", "bad=bad.jsonl"]
        )
        == 0
    )
    assert "6 pairs, 6 of them from SIMULATED votes; left out: none" in capsys.readouterr().out
    record = json.loads((place / "out/runs/rewriter.json").read_text())
    assert (
        '"nava.simulated_pairs": "6"' in (place / "out/tracking" / record["key"] / "events.jsonl").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grpo", "nowhere", "prompts.jsonl"], "nowhere: no such folder"),
        (["grpo", "lm", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["grpo", "lm", "prompts.jsonl", "--set", "stps=3"], "did you mean 'steps'"),
        (["grpo", "lm", "prompts.jsonl", "--set", "rewards.span=3"], "did you mean 'spans'"),
        (["grpo", "lm", "prompts.jsonl", "--set", "steps"], "expected key=value"),
        (["grpo", "lm", "prompts.jsonl", "--set", "batch=512"], "6 prompts, and a step takes 64"),
        (
            ["grpo", "lm", "prompts.jsonl", "--set", "batch=8", "--clip-score", "no.such:thing"],
            "cannot be imported",
        ),
        (
            ["grpo", "lm", "prompts.jsonl", "--set", "batch=8", "--clips", "m", "--clip-score", "a:b"],
            "give one of them",
        ),
        (
            ["grpo", "lm", "prompts.jsonl", "--set", "batch=8", "--clips", "m", "--rewards", "sync_mni"],
            "did you mean 'sync_mini'",
        ),
        (
            ["grpo", "lm", "prompts.jsonl", "--set", "batch=8", "--clips", "m", "--rewards", "sync_mini=-1"],
            "a weight above 0",
        ),
        (
            [
                "grpo",
                "lm",
                "prompts.jsonl",
                "--set",
                "batch=8",
                "--clips",
                "m",
                "--set-reward",
                "sync_mini.model=[",
            ],
            "not YAML",
        ),
        (["dpo", "lm", "votes.jsonl", "--rewrites", "good.jsonl"], "expected NAME=OUT.jsonl"),
        (["dpo", "lm", "votes.jsonl", "--rewrites", "a=good.jsonl", "a=bad.jsonl"], "'a' stands twice"),
        (["dpo", "lm", "votes.jsonl", "--rewrites", "good=good.jsonl"], "no clip of 'bad'"),
        (
            ["dpo", "lm", "votes.jsonl", "--axis", "voice", "--rewrites", "good=good.jsonl", "bad=bad.jsonl"],
            "no vote to count about",
        ),
    ],
)
def test_wrong_inputs_end_with_one_line_before_anything_is_made(place, capsys, arguments, message):
    write_rewrites(place)
    assert message in line_of(capsys, "rewriter", *arguments)
    assert not (place / "out").exists()


def test_options_of_a_plug_in_are_its_own():
    names, flag = ["rewards.remote:sync_mini", "sync_mini"], "--set-reward"
    settings = ("rewards.remote:sync_mini.url=http://h:1", "sync_mini.margin=2", "sync_mini.model=m")
    wanted = {"rewards.remote:sync_mini": {"url": "http://h:1"}, "sync_mini": {"margin": 2, "model": "m"}}
    assert reward_settings(settings, names, flag) == wanted
    with pytest.raises(ValueError, match=r"--set-reward sync\.x=1: 'sync' is not asked for"):
        reward_settings(("sync.x=1",), names, flag)


def test_settings_keep_the_rewards_that_are_not_named():
    config = overridden(GrpoTuning(), ("rewards.spans=5", "steps=7", "rewards.length=0"))
    assert config.steps == 7 and dict(config.rewards) == {
        "spans": 5.0,
        "structure": 1.0,
        "length": 0.0,
        "clips": 1.0,
    }
    assert overridden(DpoTuning(), ("batch=2", "micro_batch=2")) == overridden(
        DpoTuning(), ("micro_batch=2", "batch=2")
    )
    with pytest.raises(ValueError, match="group: unknown key"):
        overridden(DpoTuning(), ("group=4",))


def test_clips_that_are_never_scored_end_the_tuning(tmp_path):
    world = write_world(tmp_path)
    rows = read_prompts(world / "prompts.jsonl")[:1]
    sizes = {"num_frames": 5, "height": 32, "width": 32, "bf16": False, "device": "cpu"}
    config = GenerateConfig(**sizes, sampler=dataclasses.replace(GenerateConfig().sampler, steps=1))
    weights = {"snr_estimate_db": 1.0, "lip_loudness_correlation": 1.0}
    score = RewriteClips(world / "base", world / "codec", weights, {}, config, rows, world / "prompts.jsonl")
    for _ in range(MAX_UNSCORED - 1):
        assert math.isnan(score([rows[0].prompt.text], rows)[0])
    with pytest.raises(ValueError, match=r"lip_loudness_correlation: no mouth box"):
        score([rows[0].prompt.text], rows)


def test_clips_of_rewrites_differ_by_their_words_alone(tmp_path):
    world = write_world(tmp_path)
    rows = read_prompts(world / "prompts.jsonl")[:3]
    sizes = {"num_frames": 5, "height": 32, "width": 32, "bf16": False, "device": "cpu"}
    sampler = dataclasses.replace(GenerateConfig().sampler, steps=2)
    weights = {"snr_estimate_db": 1.0}
    config = GenerateConfig(**sizes, sampler=sampler, batch_size=2)
    given = (world / "base", world / "codec", weights, {}, config, rows, world / "prompts.jsonl")
    score = RewriteClips(*given)
    plain = [row.prompt.text for row in rows]
    longer = [f"The video shows a room. {text}" for text in plain]
    first = score([*plain, longer[0]], [*rows, rows[0]])
    again = score([longer[0], *reversed(plain)], [rows[0], *reversed(rows)])
    assert all(map(math.isfinite, first))
    assert again[0] == pytest.approx(first[3], abs=1e-4) and again[1:] == pytest.approx(
        first[2::-1], abs=1e-4
    )
    assert first[0] != pytest.approx(first[3], abs=1e-4)  # other words, another clip
    assert first[0] != pytest.approx(first[2], abs=1e-4)  # another prompt, other noise
    assert score.identity == RewriteClips(*given).identity
    assert score.identity != RewriteClips(*given[:2], {"snr_estimate_db": 2.0}, *given[3:]).identity
    image = dataclasses.replace(rows[0], image_path=world / "x.png")
    with pytest.raises(ValueError, match="start from no image"):
        RewriteClips(*given[:5], [image], world / "prompts.jsonl")
    lost = dataclasses.replace(
        rows[1], prompt=parse(rows[1].prompt.text, ["gone.wav"]), reference_paths=(world / "gone.wav",)
    )
    with pytest.raises(FileNotFoundError, match=r"gone.wav does not exist"):
        RewriteClips(*given[:5], [lost], world / "prompts.jsonl")
