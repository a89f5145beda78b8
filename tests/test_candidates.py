"""Options of `nava generate` that are checked before a model is loaded: where the best of several clips go,
and texts that pass through YAML."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.candidates import _moved, _request, beside, check_choice
from experiments.commands.generate import Making, generate
from experiments.recipes.load import parse_setting
from experiments.scoring.config import settings_from
from pretrain.generation.clip_folder import ClipFolder


@pytest.fixture
def rubric(tmp_path: Path) -> Path:
    path = tmp_path / "rubric.yaml"
    path.write_text("items:\n  snr_estimate_db: {weight: 1.0, normalise: group}\n")
    return path


def filled(place: Path, request: dict, finish: bool = True) -> Path:
    """A folder that `nava generate` began with a request."""
    folder = ClipFolder.of(place, request, [])
    folder.begin(1)
    if finish:
        folder.finish()
    return place


def test_a_destination_of_somebody_is_refused_before_any_clip_is_made(rubric, tmp_path) -> None:
    """There is no model: had it got so far, it would be missed."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "A ball."}) + "\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    made = {"model": tmp_path / "no", "candidates": 2, "rubric": rubric}
    with pytest.raises(ValueError, match="mine: not empty and not marked as made by `nava generate`"):
        generate(tmp_path / "p.jsonl", to=str(tmp_path / "mine"), **made)
    with pytest.raises(FileNotFoundError, match="no: no such file"):
        generate(tmp_path / "p.jsonl", to=str(tmp_path / "new"), **made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "p.jsonl", "rubric.yaml"]


def test_what_may_be_filled_is_what_is_filled_at_the_end(rubric, tmp_path) -> None:
    check_choice(tmp_path / "new", rubric, 2)
    other = filled(tmp_path / "other", {"model": "x"})
    check_choice(other, rubric, 2)  # goes to the trash at the end
    check_choice(filled(tmp_path / "begun", {"model": "x"}, finish=False), rubric, 2)
    (other / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'mine\.txt'"):
        check_choice(other, rubric, 2)
    assert (other / "mine.txt").is_file()


def test_a_choice_that_is_there_already_needs_no_room(rubric, tmp_path) -> None:
    out = tmp_path / "best"
    filled(beside(out, "candidates"), {"model": "x"})
    request = _request(beside(out, "candidates"), settings_from((), rubric, (), ()), 2)
    assert request["model"] == "x"
    (filled(out, request) / "mine.txt").write_text("mine")
    check_choice(out, rubric, 2)
    with pytest.raises(ValueError, match=r"holds 'mine\.txt'"):
        check_choice(out, rubric, 3)


def test_paths_that_start_at_the_candidates_start_at_the_choice(tmp_path) -> None:
    """Also where the destination is a link elsewhere."""
    (tmp_path / "far" / "best").mkdir(parents=True)
    (tmp_path / "best").symlink_to(tmp_path / "far" / "best")
    names = ["./../voice.wav", "", "old.wav", "/a/b.wav"]
    moved = _moved(names, tmp_path / "best-candidates", tmp_path / "best")
    assert moved == ["./../../voice.wav", "", "old.wav", "/a/b.wav"]


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_passes_as_a_setting(text: str) -> None:
    (setting,) = Making(negative_prompt=text).settings(24.0)
    assert parse_setting(setting) == {"generate": {"negative_prompt": text}}


@pytest.mark.parametrize(
    "text", ["blurry 😀", "𠮷: [a", "a\u2028b\x85c\x7f", "yes", "{", "", "é\ufeff\n\n b "]
)
def test_texts_that_other_ways_of_quoting_break(text: str) -> None:
    (setting,) = Making(negative_prompt=text).settings(24.0)
    assert parse_setting(setting) == {"generate": {"negative_prompt": text}}
