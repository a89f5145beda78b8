"""`nava align` of an imported model with prompts, voices, held-out prompts and a rubric of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from own_alignment import RUBRIC, arguments, picture, prompts, row, rubric, write_inputs
from safetensors.torch import load_file

from experiments.cli import main
from experiments.runs.spool import spooled_runs
from finetune.adapters import adapted_model, read_adapter
from pretrain.model.checkpoint import load_model, read_model_folder

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("own"))


@pytest.fixture(autouse=True)
def nothing_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def aligned(inputs, tmp_path_factory) -> Path:
    """The folder of an alignment by the verb; out/ is beside it."""
    folder = tmp_path_factory.mktemp("aligned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
        patch.chdir(folder)
        assert main(arguments(inputs, folder / "to")) == 0
    return folder / "to"


def test_an_imported_model_is_aligned_to_a_rubric_file(inputs, aligned):
    base = read_model_folder(inputs / "model").facts["checkpoint_id"]
    adapter, tensors = read_adapter(aligned / "adapter")
    assert adapter.base_id == base and any(bool(value.any()) for key, value in tensors.items() if "_B" in key)
    rows = [json.loads(line) for line in (aligned / "metrics.jsonl").read_text().splitlines()]
    assert {f"held_out/reward/{name}" for name in RUBRIC["items"]} <= rows[0].keys()
    merged, apart = load_model(aligned / "model")[0], adapted_model(inputs / "model", aligned / "adapter")[0]
    name = next(iter(merged.state_dict()))
    assert name and read_model_folder(aligned / "model").facts["parent"] == base
    assert len(list(apart.parameters())) > len(list(merged.parameters()))


def test_it_ends_with_the_closing_page(aligned):
    page = (aligned.with_name("to-report") / "report.html").read_text()
    found = json.loads((aligned.with_name("to-report") / "report.json").read_text())
    assert found["prompts"] > 1 and "<video" in page
    assert {"snr_estimate_db", "identity_colour_edge"} <= found["metrics"].keys()


def test_the_run_names_what_it_was_made_from(inputs, aligned):
    above, align = spooled_runs(aligned.parent / "out" / "tracking")
    assert above.start_event()["name"].startswith("align own nft 20")
    events = [event for _, event in align.events()]
    start = next(event for event in events if event["kind"] == "start")
    for name in ("prompts.jsonl", "held_out.jsonl", "rubric.yaml"):
        assert start["inputs"][str(inputs / name)].startswith("sha256:")
    assert start["inputs"][str(inputs / "model")].startswith("checkpoint:")
    assert start["config"]["rubric"]["video"] == {"identity_colour_edge": 0.5}
    assert start["config"]["rubric"]["audio"] == {"snr_estimate_db": 1.0, "sim_resemblyzer": 0.5}
    assert start["config"]["guardrails"] == {"min_loudness_dbfs": -70} and not start["parents"]
    tags = {
        name: value for event in events if event["kind"] == "tags" for name, value in event["values"].items()
    }
    assert tags["nava.model"] == str(inputs / "model") and "sha256" in tags["nava.rubric_file"]
    assert "held_out.jsonl" in tags["nava.held_out"]


def test_its_model_becomes_a_version_of_the_model_it_started_from(inputs, aligned):
    base = read_model_folder(inputs / "model").facts["checkpoint_id"]
    events = [event for _, event in spooled_runs(aligned.parent / "out" / "tracking")[1].events()]
    model, adapter = (event for event in events if event["kind"] == "model")
    assert (model["registered"], model["alias"], model["version_of"]) == ("", "aligned", base)
    assert model["tags"]["nava.parent_checkpoint"] == base and adapter["registered"] == ""
    assert adapter["tags"]["nava.adapter_id"] == read_adapter(aligned / "adapter")[0].adapter_id
    start = next(event for event in events if event["kind"] == "start")
    assert start["models"][str(inputs / "model")] == f"checkpoint:{base}"
    assert start["datasets"][str(inputs / "prompts.jsonl")]["profile"]["num_rows"] == 8


def test_a_finished_alignment_is_kept_and_another_one_is_not_written_over_it(inputs, aligned, capsys):
    assert main(arguments(inputs, aligned)) == 0 and "kept" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments(inputs, aligned), "--set", "align.seed=1"])
    assert "trained with other inputs or settings" in capsys.readouterr().err


@pytest.mark.slow
def test_alignment_goes_on_from_an_adapter(inputs, aligned, tmp_path):
    """At a rate that moves nothing, the adapter that comes out is the one that went in."""
    still = ["--set", "align.nft.lr=1e-30", "--set", "align.nft.rounds=1", "--set", "align.weight_decay=0"]
    given = arguments(inputs, tmp_path / "to", adapter=str(aligned / "adapter"))
    assert main([*given, *still, "--set", "align.lora.rank=2"]) == 0
    before, after = (
        load_file(path / "adapter" / "adapter_model.safetensors") for path in (aligned, tmp_path / "to")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    facts = read_model_folder(tmp_path / "to" / "model").facts
    assert facts["initial_adapter"] == read_adapter(aligned / "adapter")[0].adapter_id
    assert facts["parent"] == read_model_folder(inputs / "model").facts["checkpoint_id"]


@pytest.mark.slow
@pytest.mark.distributed
def test_the_same_alignment_on_ray(inputs, aligned, tmp_path):
    assert main([*arguments(inputs, tmp_path / "to"), "--ray"]) == 0
    local, remote = (
        load_file(path / "adapter" / "adapter_model.safetensors") for path in (aligned, tmp_path / "to")
    )
    for key, value in local.items():
        torch.testing.assert_close(remote[key], value, rtol=1e-4, atol=1e-6)


def items(**given) -> dict:
    return {"items": given}


SNR = {"snr_estimate_db": {"weight": 1.0}}
BAD_RUBRICS = [
    (items(wer_pocketsphinx_judge={"weight": -1}), r"wer_pocketsphinx_judge.weight: a judge must stay out"),
    (
        items(snr_estimate={"weight": 1}),
        r"items.snr_estimate: unknown reward.*did you mean 'snr_estimate_db'",
    ),
    (items(wer_pocketsphinx={"weight": 1}), r"lower is better, so give it a negative weight"),
    (items(sim_resemblyzer={"weight": -1}), r"items.sim_resemblyzer.weight: higher is better"),
    (
        items(sim_resemblyzer={"normalise": "batch"}),
        r"items.sim_resemblyzer.normalise: batch does not compare",
    ),
    (
        {"items": {"wer_pocketsphinx.errors": {"weight": -1}}},
        r"items.wer_pocketsphinx.errors: alignment weighs",
    ),
    (items(sim_resemblyzer={"wight": 1}), r"items.sim_resemblyzer.wight: unknown option.*weight"),
    ({**RUBRIC, "options": {"sim_resemblizer": {}}}, r"options.sim_resemblizer: not among.*sim_resemblyzer"),
    ({**RUBRIC, "options": {"sim_resemblyzer": {"x": 1}}}, r"options.sim_resemblyzer.x: unknown option"),
    ({**RUBRIC, "guardrails": {"min_motions": 1}}, r"guardrails.min_motions: unknown option.*min_motion"),
    ({"items": SNR}, r"rubric: snr_estimate_db sees the clip and not its prompt.*allow_prompt_blind: true"),
    (items(wer_pocketsphinx={"weight": -1}), r"prompts.jsonl:2: 'two' is not among the \d+ words"),
    (
        items(sync_mini={}, sim_resemblyzer={}),
        r"sync_mini can score none of the 8 prompts: they have not meta.mouth_boxes",
    ),
    (
        items(fd_verse_bench={"weight": -1}, sim_resemblyzer={}),
        r"fd_verse_bench: names no file; set reward_files.clap=PATH",
    ),
    (items(wer_whisper={"weight": -1}), r"wer_whisper: names no file; set reward_files.whisper=PATH"),
    ({**RUBRIC, "allow_prompt_blind": 3}, r"allow_prompt_blind: expected true or false"),
]
BAD_ROWS = [
    (
        {"prompt": "Rain on a roof.", "spk_wavs": []},
        r"prompts.jsonl:3: no reward of the rubric can score this prompt",
    ),
    ({"spk_wavs": ["nowhere.wav"]}, r"prompts.jsonl:3.*nowhere.wav"),
    ({"prompt": "A man says <S>one."}, r"prompts.jsonl:3 prompt: <S> at character"),
    ({"image_path": "small.png"}, r"prompts.jsonl:3 image_path: .*16x16"),
]
BAD_OPTIONS = [
    ({"model": "nowhere"}, r"nowhere/config.json: not found; give the model/ folder"),
    ({"model": "models:/a/b/c"}, r"expected models:/NAME/VERSION"),
    ({"model": "models:/nava/1"}, r"models:/nava/1: no MLflow here"),
    ({"codec": "INPUTS/model"}, r"unknown codec 'nava'"),
    ({"codec": "nowhere"}, r"nowhere/config.json: no codec here"),
    ({"adapter": "nowhere"}, r"nowhere/adapter.json: not found"),
    ({"pairs": "INPUTS/prompts.jsonl"}, r"--pairs needs --clips"),
    ({"clips": "INPUTS/prompts.jsonl"}, r"--clips needs --pairs"),
    ({"pairs": "a", "clips": "b"}, r"--pairs and --clips belong to gsb_dpo"),
    ({"held-out": "nowhere.jsonl"}, r"nowhere.jsonl: no such file"),
    ({"rubric": "nowhere.yaml"}, r"nowhere.yaml: no such file; give a rubric as YAML"),
    ({"prompts": "nowhere.jsonl"}, r"nowhere.jsonl: no such file"),
]


def refused(given: list[str], said: str, capsys, folder: Path) -> None:
    """One line, exit code 2, and nothing written: what is at the destination stays as it is."""
    kept = folder / "to" / "model" / "kept.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as left:
        main([*given, "--no-resume"])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1
    import re

    assert re.search(said, error), error
    assert sorted(folder.rglob("*")) == before and kept.read_text() == "mine"


@pytest.mark.parametrize(("content", "said"), BAD_RUBRICS)
def test_a_wrong_rubric_is_one_line(content, said, inputs, tmp_path, capsys):
    rubric(tmp_path / "wrong.yaml", content)
    refused(arguments(inputs, tmp_path / "to", rubric="wrong.yaml"), said, capsys, tmp_path)


@pytest.mark.parametrize(("changes", "said"), BAD_ROWS)
def test_a_wrong_prompt_is_named_by_its_line(changes, said, inputs, tmp_path, capsys):
    rows = [row(f"p{index}", "one", spk_wavs=[str(inputs / "long.wav")]) for index in range(8)]
    picture(tmp_path / "small.png", 16)
    rows[2] |= changes
    rubric(tmp_path / "voice.yaml", items(sim_resemblyzer={}))
    path = prompts(tmp_path / "prompts.jsonl", rows)
    given = arguments(inputs, tmp_path / "to", prompts=str(path), rubric="voice.yaml")
    refused(given, said, capsys, tmp_path)


@pytest.mark.parametrize(("changes", "said"), BAD_OPTIONS)
def test_a_wrong_option_is_one_line(changes, said, inputs, tmp_path, capsys):
    changes = {name: text.replace("INPUTS", str(inputs)) for name, text in changes.items()}
    refused(arguments(inputs, tmp_path / "to", **changes), said, capsys, tmp_path)
