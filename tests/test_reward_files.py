"""Files of the published rewards: one place in the recipe, what is missing is named before work starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_rewards_clap import save_tiny_clap
from test_rewards_whisper import save_tiny_whisper

from experiments.alignment.rubric import with_rubric
from experiments.cli import main
from experiments.recipes.load import load_recipe
from experiments.scoring.config import read_rubric
from experiments.scoring.latents import scorer_options
from experiments.scoring.reward_files import FILES, RewardFiles, check_reward_files, missing_files
from rewards.catalog import CATALOG, checked_options, open_rewards
from rewards.devices import device_for

RECIPE = load_recipe("nava_6b")
REWARDS = tuple(RECIPE.alignment.rubric.weights())
NAMED = {field for name in REWARDS for field in FILES.get(name, {}).values()}


def options(*settings: str) -> dict:
    """Of the rewards of nava_6b, as its ranks get them."""
    recipe = load_recipe("nava_6b", None, settings)
    where = Path("corpus"), Path("codec"), Path("syncnet")
    return scorer_options(recipe.alignment, *where, files=recipe.reward_files)["options"]


def put(folder: Path, fields: set[str]) -> None:
    for field in fields:
        path = folder / getattr(RECIPE.reward_files, field)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_every_reward_of_the_full_size_recipe_finds_its_files_in_one_folder(tmp_path):
    assert set(REWARDS) == {
        "wer_whisper",
        "sim_wavlm_ecapa",
        "audiobox_pq",
        "clap_text_cosine",
        "syncnet",
    }
    found = options(f"reward_files.folder={tmp_path}")
    checked_options(list(found), found)
    for name in REWARDS:
        assert str(tmp_path) in found[name]["weights"] and found[name]["device"] == "auto"
    assert found["wer_whisper"]["name"] == "whisper_large_v3" and found["syncnet"]["detector"] == "yunet"
    assert Path(options()["syncnet"]["weights"]).is_absolute()
    assert not any("parked" in own for own in found.values())


def test_parked_networks_are_all_but_syncnets(tmp_path):
    found = options(f"reward_files.folder={tmp_path}", "reward_files.parked=true")
    checked_options(list(found), found)
    assert {name for name in REWARDS if found[name].get("parked")} == {*REWARDS} - {"syncnet"}


def test_the_table_of_files_is_that_of_the_rewards():
    for name, fields in FILES.items():
        known = {item.name for item in dataclasses.fields(CATALOG[name].options)}
        assert set(fields) <= known
        assert set(fields.values()) <= {item.name for item in dataclasses.fields(RewardFiles)}


def test_other_recipes_name_no_files_and_their_options_stay():
    given_options = {"wer_pocketsphinx": {"vocabulary": ["yes"]}}
    assert RewardFiles().over(["wer_pocketsphinx", "syncnet", "wer_endpoint"], given_options) == given_options
    assert load_recipe("mini").reward_files == RewardFiles()


@given(there=st.sets(st.sampled_from(sorted(NAMED))))
def test_exactly_what_is_not_there_is_missing(there, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    put(folder, there)
    missing = missing_files(options(f"reward_files.folder={folder}"))
    assert {item.field for item in missing} == NAMED - there
    if missing:
        with pytest.raises(FileNotFoundError) as error:
            check_reward_files(options(f"reward_files.folder={folder}"))
        told = str(error.value)
        assert "\n" not in told and told.count("no such file or folder") == len(NAMED - there)
        assert all(getattr(RECIPE.reward_files, item.field) in told for item in missing)
    else:
        check_reward_files(options(f"reward_files.folder={folder}"))


def test_a_missing_file_ends_the_command_before_anything_is_read_or_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "weights", NAMED - {"wavlm_ecapa"})
    before = sorted(tmp_path.rglob("*"))
    asked = ["align", "nava_6b", "--model", "gone", "--codec", "gone", "--prompts", "gone.jsonl"]
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--to", "to"])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1
    assert f"sim_wavlm_ecapa: {tmp_path}/weights/wavlm_large_finetune.pth: no such file or folder" in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_field_that_is_left_empty_is_told_by_its_name():
    with pytest.raises(FileNotFoundError, match=r"^audiobox_pq: names no file; set reward_files.audiobox="):
        check_reward_files({"audiobox_pq": {"device": "cpu"}})
    haar = options("reward_files.face_detector=''")["syncnet"]
    assert "detector" not in haar
    assert [item.field for item in missing_files({"syncnet": haar})] == ["syncnet"]


def test_options_of_a_rubric_file_come_before_the_recipes_files(tmp_path):
    content = {
        "items": {"wer_whisper": {"weight": -1.0}, "syncnet": {"weight": 1.0}},
        "options": {"syncnet": {"weights": "/mine.model"}},
    }
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump(content))
    align = with_rubric(RECIPE.alignment, read_rubric(tmp_path / "rubric.yaml"))
    found = RECIPE.reward_files.over(list(align.rubric.weights()), align.reward_options)
    assert found["syncnet"]["weights"] == "/mine.model" and found["syncnet"]["detector"] == "yunet"
    assert "audiobox_pq" not in found and found["wer_whisper"]["weights"].endswith("whisper-large-v3")


def test_words_may_be_those_of_a_server():
    rubric = "align.rubric.audio={wer_endpoint: 1.0}"
    with pytest.raises(FileNotFoundError, match=r"^wer_endpoint: no server; set reward_files\.transcr"):
        check_reward_files({"wer_endpoint": options(rubric)["wer_endpoint"]})
    server = "reward_files.transcription_url=http://127.0.0.1:9", "reward_files.transcription_model=large"
    found = options(rubric, *server)["wer_endpoint"]
    assert missing_files({"wer_endpoint": found}) == []
    with open_rewards(["wer_endpoint"], {"wer_endpoint": found}) as (reward,):
        assert reward.name.startswith("wer")


def test_rewards_open_by_what_the_recipe_names(tmp_path):
    files = RewardFiles(folder=tmp_path, whisper="words", clap="sounds", device="auto")
    save_tiny_whisper(tmp_path / "words")
    save_tiny_clap(tmp_path / "sounds")
    names = ["wer_whisper", "clap_text_cosine"]
    with open_rewards(names, files.options(names)) as rewards:
        assert [reward.name for reward in rewards] == ["wer_whisper", "clap_text_cosine"]


def test_a_device_that_is_not_here_is_refused_by_the_rewards_name(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_for("auto", "syncnet") == device_for("cpu", "syncnet") == "cpu"
    for name in ("cuda", "cuda:1", "gpu"):
        with pytest.raises(ValueError, match=r"^syncnet\.device: [^\n]*set auto[^\n]*$"):
            device_for(name, "syncnet")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    assert device_for("auto", "syncnet") == "cuda:1" and device_for("cuda:1", "syncnet") == "cuda:1"
    with pytest.raises(ValueError, match="cuda:2 is not here"):
        device_for("cuda:2", "syncnet")
