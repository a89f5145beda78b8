"""Wrong input of `nava gsb serve` is one line before anything is made, and surveys go on."""

import sqlite3

import httpx
import numpy as np
import pytest
from sqlalchemy import select
from voting_world import RaterClient, config_of, copy_world, make_world, served, write_set

from experiments.cli import main
from experiments.voting import tables
from experiments.voting.database import open_database, reading
from experiments.voting.sets import read_cases
from experiments.voting.store import make_links
from experiments.voting.survey import add_survey
from experiments.voting.texts import FOLDER, read_texts
from pretrain.media.write import write_mp4, write_wav


@pytest.fixture
def sets(tmp_path):
    return [("a", write_set(tmp_path / "a", "base", 2)), ("b", write_set(tmp_path / "b", "ours", 2))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("input") / "made", num=2)


def serve(capsys, *arguments):
    """The one line that `nava gsb serve` refuses with."""
    with pytest.raises(SystemExit) as stop:
        main(["gsb", "serve", *map(str, arguments)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def command(sets, tmp_path, *more):
    return [f"{model}={folder}" for model, folder in sets] + [
        "--votes",
        tmp_path / "v.db",
        "--port",
        "0",
        *more,
    ]


def test_one_model_alone(sets, tmp_path, capsys):
    assert "one model alone (a)" in serve(capsys, *command(sets[:1], tmp_path))


def test_a_model_given_twice(sets, tmp_path, capsys):
    twice = [sets[0], ("a", sets[1][1])]
    assert "twice" in serve(capsys, *command(twice, tmp_path))


def test_sets_of_different_cases(sets, tmp_path, capsys):
    index = sets[1][1] / "index.jsonl"
    index.write_text(index.read_text().splitlines()[0] + "\n")
    assert "'case-1', which 'a' has and 'b' has not" in serve(capsys, *command(sets, tmp_path))


def test_sets_of_different_prompts(sets, tmp_path, capsys):
    index = sets[1][1] / "index.jsonl"
    index.write_text(index.read_text().replace("number 1", "number one"))
    assert "case 'case-1' has another prompt" in serve(capsys, *command(sets, tmp_path))


def test_a_missing_clip(sets, tmp_path, capsys):
    (sets[1][1] / "case-1.mp4").unlink()
    assert "the clip of case 'case-1' is not there" in serve(capsys, *command(sets, tmp_path))


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\0" * 5000])
def test_a_broken_clip(sets, tmp_path, capsys, content):
    (sets[0][1] / "case-0.mp4").write_bytes(content)
    assert "case-0.mp4" in serve(capsys, *command(sets, tmp_path))
    assert not (tmp_path / "v.files" / "survey").exists()


def test_a_clip_without_sound(sets, tmp_path, capsys):
    write_mp4(sets[0][1] / "case-0.mp4", np.zeros((9, 32, 32, 3), np.uint8), 12.0, None, 16_000)
    assert "no sound" in serve(capsys, *command(sets, tmp_path))


def test_a_clip_without_pictures(sets, tmp_path, capsys):
    write_wav(tmp_path / "sound.wav", np.zeros(16_000), 16_000)
    (tmp_path / "sound.wav").rename(sets[0][1] / "case-0.mp4")
    assert "no pictures" in serve(capsys, *command(sets, tmp_path))


def test_clips_of_different_length(tmp_path, capsys):
    sets = [("a", write_set(tmp_path / "a", "a", 1)), ("b", write_set(tmp_path / "b", "b", 1, seconds=2.0))]
    line = serve(capsys, *command(sets, tmp_path))
    assert "0.7" in line and "is 2.0" in line and "one length" in line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ours", "c"], "--ours c"),
        (["--axes", "overall", "smell"], "--axes overall smell"),
        (["--cases", "3"], "--cases 3: there are 2"),
        (["--per-rater", "0"], "--per-rater 0"),
        (["--repeats", "2"], "--repeats 2"),
        (["--survey", "../x"], "--survey '../x'"),
        (["--texts", "nowhere"], "--texts nowhere: no such folder"),
        (["--port", "70000"], "--port 70000"),
    ],
)
def test_impossible_settings(sets, tmp_path, capsys, more, said):
    assert said in serve(capsys, *command(sets, tmp_path, *more))


def test_a_database_of_another_version(made, tmp_path, capsys):
    world = copy_world(made, tmp_path / "world")
    with sqlite3.connect(world / "votes.db") as connection:
        connection.execute("UPDATE nava_gsb_version SET version = 99")
    assert "of version 99" in serve(capsys, "--votes", world / "votes.db", "--port", "0")


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look at" * 50, b"SQLite format 3\0" + b"x" * 5000]
)
def test_a_file_that_is_no_database(tmp_path, capsys, sets, content):
    (tmp_path / "v.db").write_bytes(content)
    assert "v.db: " in serve(capsys, *command(sets, tmp_path))
    assert (tmp_path / "v.db").read_bytes() == content


def test_a_database_of_something_else(tmp_path, capsys, sets):
    with sqlite3.connect(tmp_path / "v.db") as connection:
        connection.execute("CREATE TABLE mine (x)")
    assert "a database of something else" in serve(capsys, *command(sets, tmp_path))


@pytest.mark.parametrize("place", ["mysql://u@h/d", "postgresql://", "sqlite:///x.db", "http://x"])
def test_a_url_that_is_not_postgresql(tmp_path, capsys, sets, place):
    arguments = [f"{model}={folder}" for model, folder in sets]
    assert "--votes" in serve(capsys, *arguments, "--votes", place, "--port", "0", "--folder", tmp_path / "f")


def test_a_password_is_never_printed(tmp_path, capsys, sets):
    place = "postgresql://someone:secret-word@127.0.0.1:1/none"
    arguments = [f"{model}={folder}" for model, folder in sets]
    line = serve(capsys, *arguments, "--votes", place, "--port", "0", "--folder", tmp_path / "f")
    assert "secret-word" not in line and ("cannot be opened" in line or "psycopg" in line)


def test_no_survey_is_there(tmp_path, capsys):
    assert "no such file" in serve(capsys, "--votes", tmp_path / "v.db", "--port", "0")
    with pytest.raises(SystemExit):
        main(["gsb", "export", "--survey", str(tmp_path / "v.db")])


def test_a_survey_without_cases_left(made, tmp_path, capsys):
    world = copy_world(made, tmp_path / "world")
    with sqlite3.connect(world / "votes.db") as connection:
        connection.execute("DELETE FROM gsb_clips")
        connection.execute("DELETE FROM gsb_cases")
    given = ["--votes", world / "votes.db", "--folder", world / "files", "--port", "0", "--links", "1"]
    assert "has no cases left" in serve(capsys, *given)
    with served(world) as site, httpx.Client() as client:
        answer = client.post(f"{site.url}/owner/surveys/1/links", json={"count": 1}, headers=site.owner)
    assert answer.status_code == 409 and "has no cases left" in answer.json()["error"]


def test_a_clip_that_went_missing_while_people_vote(made, tmp_path):
    """It is said of that clip alone; the page tries again, and goes on once the file is back."""
    world = copy_world(made, tmp_path / "world")
    with served(world) as site, httpx.Client() as client:
        rater = RaterClient(site.links(1)[0], client)
        state = rater.state()
        (world / "files" / "survey").rename(world / "files" / "away")
        answers = rater.watch(state["task"])
        assert {one.status_code for one in answers.values()} == {404}
        assert answers["left"].json()["code"] == "gone"
        assert rater.send("votes", rater.body(state, ["left"])).json()["code"] == "unseen"
        (world / "files" / "away").rename(world / "files" / "survey")
        rater.vote("left")
        assert rater.state()["done"] == 1


@pytest.mark.parametrize("option", ["--votes", "--folder"])
def test_a_place_that_dvc_would_delete(sets, tmp_path, capsys, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {evaluate: {cmd: x, outs: [out/gsb]}}")
    places = {"--votes": "votes.db", "--folder": "files", option: "out/gsb/here"}
    arguments = [f"{model}={folder}" for model, folder in sets]
    given = [part for pair in places.items() for part in pair]
    assert f"{option} out/gsb/here: in the output of stage evaluate" in serve(capsys, *arguments, *given)
    assert not (tmp_path / "out").exists()


def test_nobody_has_voted_yet(made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["gsb", "export", str(tmp_path / "v.jsonl"), "--survey", str(made / "votes.db")])
    assert "nobody has voted yet" in capsys.readouterr().err


def test_the_same_survey_goes_on_and_another_is_refused(made, tmp_path):
    world = copy_world(made, tmp_path / "world")
    cases = read_cases([(model, world / "sets" / model) for model in ("base", "ours")])
    engine = open_database(str(world / "votes.db"))
    survey, new = add_survey(engine, "survey", config_of(), cases, world / "files")
    assert not new and survey.id == 1
    with pytest.raises(ValueError, match="with seed 0, not 1"):
        add_survey(engine, "survey", config_of(seed=1), cases, world / "files")
    with pytest.raises(ValueError, match="of other clips"):
        add_survey(engine, "survey", config_of(), cases[:1], world / "files")
    with pytest.raises(ValueError, match="is there, but the database has no survey"):
        (world / "files" / "other").mkdir()
        add_survey(engine, "other", config_of(), cases, world / "files")
    assert [path.name for path in sorted((world / "files").iterdir())] == ["other", "survey"]
    engine.dispose()


def test_sides_follow_from_the_seed(made, tmp_path):
    """The same links in two databases of one seed see the same cases on the same sides."""
    seen = []
    for name in ("one", "two"):
        engine = open_database(str(copy_world(made, tmp_path / name) / "votes.db"))
        make_links(engine, "survey", 3)
        with reading(engine) as connection:
            column = tables.tasks.c
            query = select(column.rater_id, column.position, column.kind, column.left_clip, column.right_clip)
            seen.append(connection.execute(query.order_by(column.id)).all())
        engine.dispose()
    assert seen[0] == seen[1] and len(seen[0]) > 6


def test_every_language_has_every_key_and_a_file_adds_one(tmp_path):
    texts = read_texts()
    english = texts.by_code["en"]
    for path in FOLDER.glob("*.json"):
        assert texts.by_code[path.stem].keys() == english.keys()
    (tmp_path / "fr.json").write_text('{"language": "Français", "play": "Lire les deux"}')
    french = read_texts(tmp_path).by_code["fr"]
    assert french["play"] == "Lire les deux" and french["undo"] == english["undo"]
    (tmp_path / "fr.json").write_text('{"language": "Français", "plai": "x"}')
    with pytest.raises(ValueError, match="plai: unknown"):
        read_texts(tmp_path)
