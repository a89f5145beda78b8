"""From votes back: files, a run in MLflow, lineage from pairs to the survey, a page that stands alone."""

import json
from dataclasses import replace

import httpx
import numpy as np
import pytest
from voting_load import load
from voting_world import MODELS, RaterClient, make_world, served

from experiments.cli import main
from experiments.layout import Layout
from experiments.runs import lineage, run
from experiments.voting.export import read_survey, results_page
from finetune.gsb.raters import check_raters
from finetune.gsb.summary import summarise
from finetune.gsb.votes import read_votes


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """A folder with a survey in which two raters have voted, one with a comment."""
    folder = make_world(tmp_path_factory.mktemp("export") / "made", num=4)
    with served(folder) as world, httpx.Client(timeout=20) as client:
        rng = np.random.default_rng(0)
        raters = [RaterClient(link, client) for link in world.links(2)]
        raters[0].vote("right", comment="a private remark</script>")
        for rater in raters:
            rater.vote_all(rng, world)
    return folder


def export(voted, *more):
    clips = [f"{model}={voted / 'sets' / model}" for model in MODELS]
    files = ["made/votes.jsonl", "--survey", str(voted / "votes.db"), "--out", "made/pairs.jsonl"]
    return main(["gsb", "export", *files, "--clips", *clips, *more])


def test_lineage_leads_from_the_pairs_to_the_survey_and_to_no_person(voted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ensure_sender", lambda spool, root: None)
    assert export(voted) == 0
    for file in ("pairs.jsonl", "votes.jsonl"):
        found = lineage.trace(str(tmp_path / "made" / file), Layout(), tmp_path)
        assert found["runs"][0]["stage"] == "survey"
        assert found["runs"][0]["config"]["models"] == list(MODELS)
    spool = next((tmp_path / "out" / "tracking").glob("*survey*"))
    events = (spool / "events.jsonl").read_text()
    assert "votes.html" in events and "gsb_overall_against_base" in events
    assert "rater-00" not in events and "private remark" not in events


def test_without_a_run(voted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(voted, "--no-track") == 0
    assert not (tmp_path / "out").exists() and (tmp_path / "made" / "pairs.jsonl").is_file()


def test_the_page_of_results_stands_alone(voted):
    _, found = read_survey(str(voted / "votes.db"), None)
    assert found["comments"]
    page = results_page(found)
    assert "/static/" not in page and "import {" not in page and "private remark" not in page
    data = page.partition('id="kept">')[2].partition("</script>")[0]
    assert json.loads(data)["statistics"] == found["statistics"]


def test_votes_leave_no_comment_and_no_name(voted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(voted, "--no-track")
    text = (tmp_path / "made" / "votes.jsonl").read_text()
    assert "private" not in text
    assert {json.loads(line)["user_id"] for line in text.splitlines()} == {"rater-001", "rater-002"}


@pytest.mark.slow
def test_fifty_raters_at_once_lose_nothing():
    found = load(50, 5)
    assert found["acknowledged"] == found["stored"] == 250
    assert found["rss_mib"]["most"] < found["rss_mib"]["start"] + 200


def test_an_export_says_which_survey_and_can_be_pooled_with_another(voted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = []
    for _ in range(2):
        export(voted, "--no-track")
        texts.append((tmp_path / "made" / "votes.jsonl").read_text())
    assert texts[0] == texts[1]
    survey, found = read_survey(str(voted / "votes.db"), None)
    rows = [json.loads(line) for line in texts[0].splitlines()]
    assert {(row["survey"], row["survey_id"]) for row in rows} == {(survey.name, survey.key)}
    other = replace(survey, made_at="2026-01-01T00:00:00.000+00:00")  # of one name in another database
    assert other.key != survey.key
    both = rows + [{**row, "survey_id": other.key} for row in rows]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
    votes = read_votes(tmp_path / "both.jsonl")
    assert len(check_raters(votes.votes)) == 4 and votes.warnings
    pair = summarise(votes, keep_all_raters=True)["pairs"]["base"]
    assert pair["good"] == 2 * found["statistics"]["pairs"]["base"]["good"]
