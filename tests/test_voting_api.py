"""The real server: votes, undo, blindness, who may see what, and the same statistics as `nava gsb stats`."""

import csv
import io
import json
import threading
from collections import Counter

import av
import httpx
import numpy as np
import pytest
from sqlalchemy import func, select, text
from voting_world import RaterClient, copy_world, make_world, new_id, served

from experiments.cli import main
from experiments.voting import tables
from experiments.voting.body import MAX_BODY
from experiments.voting.database import open_database, reading
from experiments.voting.loudness import integrated_lufs
from experiments.voting.survey import add_survey
from finetune.gsb.votes import read_votes
from pretrain.media.read import read_media, read_metadata


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("voting") / "made")


@pytest.fixture
def world(made, tmp_path):
    with served(copy_world(made, tmp_path / "world")) as found:
        yield found


@pytest.fixture
def client():
    with httpx.Client(timeout=20) as found:
        yield found


def num_ballots(world) -> int:
    with reading(world.site.engine) as connection:
        return connection.execute(select(func.count()).select_from(tables.ballots)).scalar_one()


def test_a_rater_votes_through_all_pairs(world, client, tmp_path):
    rater = RaterClient(world.links(1)[0], client)
    state = rater.state()
    assert state["done"] == 0 and state["last"] is None and state["of"] == 6 + 2 + 3
    assert next(part for part in state["task"]["prompt"] if part["spoken"])["text"].startswith("word ")
    sent = rater.vote_all(np.random.default_rng(0))
    assert rater.state()["done"] == len(sent) == num_ballots(world) == 11
    rows = world.export(tmp_path / "votes.jsonl")
    counted = Counter((row["axis"], row.get("attention", False), row["repeat"]) for row in rows)
    assert counted["overall", False, 0] == counted["picture", False, 0] == 6
    assert counted["overall", False, 1] == 2 and counted["overall", True, 0] == 3
    assert counted["sync", True, 0] + counted["voice", True, 0] == 3 and not counted["picture", True, 0]
    assert {row["user_id"] for row in rows} == {"rater-001"}
    assert len(read_votes(tmp_path / "votes.jsonl").votes) == len(rows)


def test_undo_and_vote_again(world, client, tmp_path):
    rater = RaterClient(world.links(1)[0], client)
    rater.vote("left")
    second = rater.vote("left")
    state = rater.state()
    assert state["last"] == second["task"]
    assert rater.send("undo", {"id": new_id(), "task": second["task"]}).json()["new"]
    assert rater.state()["task"]["id"] == second["task"] and rater.state()["done"] == 1
    again = rater.vote("right", comment="seen twice")
    assert again["task"] == second["task"]
    assert num_ballots(world) == 4, "nothing is deleted"
    rows = world.export(tmp_path / "votes.jsonl")
    assert [row["choice"] for row in rows if row["axis"] == "overall"] == ["left", "right"]
    assert world.results()["comments"][0]["text"] == "seen twice"


def test_only_the_last_vote_can_be_undone(world, client):
    rater = RaterClient(world.links(1)[0], client)
    first = rater.vote("left")
    assert rater.send("undo", {"id": new_id(), "task": rater.state()["task"]["id"]}).status_code == 409
    rater.vote("tie")
    answer = rater.send("undo", {"id": new_id(), "task": first["task"]})
    assert answer.status_code == 409 and answer.json()["code"] == "not_last"
    assert rater.state()["done"] == 2


def test_the_same_request_twice_is_one_vote(world, client):
    rater = RaterClient(world.links(1)[0], client)
    sent = rater.vote("left")
    repeated = rater.send("votes", sent)
    assert repeated.status_code == 200 and repeated.json() == {"stored": True, "new": False}
    assert rater.send("votes", {**sent, "id": new_id()}).json()["code"] == "voted"
    undo = {"id": new_id(), "task": sent["task"]}
    assert [rater.send("undo", undo).json()["new"] for _ in range(2)] == [True, False]
    assert num_ballots(world) == 2
    # the vote that was taken back stays so, however late its copy arrives
    assert rater.send("votes", sent).json()["new"] is False and rater.state()["done"] == 0


def test_two_tabs_at_once_store_one_vote(world):
    link = world.links(1)[0]
    with httpx.Client() as client:
        rater = RaterClient(link, client)
        state = rater.state()
        rater.watch(state["task"])
    answers = []

    def vote(choice):
        with httpx.Client(timeout=30) as own:
            tab = RaterClient(link, own)
            answers.append(tab.send("votes", tab.body(state, [choice])).status_code)

    tabs = [threading.Thread(target=vote, args=(choice,)) for choice in ("left", "right") * 6]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert Counter(answers) == {200: 1, 409: 11} and num_ballots(world) == 1


def test_nothing_is_voted_before_both_clips_were_sent(world, client):
    rater = RaterClient(world.links(1)[0], client)
    state = rater.state()
    assert rater.send("votes", rater.body(state, ["left"])).json()["code"] == "unseen"
    client.get(f"{rater.link}/{state['task']['left']}")
    assert rater.send("votes", rater.body(state, ["left"])).status_code == 409
    client.get(f"{rater.link}/{state['task']['right']}")
    assert rater.send("votes", rater.body(state, ["left"])).status_code == 200


def test_time_cannot_be_longer_than_since_the_clips_were_sent(world, client, tmp_path):
    rater = RaterClient(world.links(1)[0], client)
    rater.vote("left", seconds=80_000)
    assert 0 < world.export(tmp_path / "votes.jsonl")[0]["seconds"] < 60


def test_two_clips_of_a_pair_differ_in_content_only(world, client):
    rater = RaterClient(world.links(1)[0], client)
    while (state := rater.state())["task"]:
        answers = rater.watch(state["task"])
        left, right = answers["left"], answers["right"]
        assert left.status_code == right.status_code == 200
        kept = [{k: v for k, v in answer.headers.items() if k != "date"} for answer in (left, right)]
        assert kept[0] == kept[1] and kept[0]["cache-control"] == "no-store"
        assert not {"etag", "last-modified", "server", "set-cookie"} & kept[0].keys()
        assert len(left.content) == len(right.content)
        assert left.content != right.content
        for word in (b"base", b"ours", b"made by", b"checkpoint", b"case-"):
            assert word not in left.content + right.content
        rater.send("votes", rater.body(state, ["left"]))


def test_clips_of_a_pair_have_one_size_length_loudness_and_no_marks(world, client, tmp_path):
    rater = RaterClient(world.links(1)[0], client)
    for _ in range(4):
        state = rater.state()
        found = []
        for side, answer in rater.watch(state["task"]).items():
            path = tmp_path / f"{side}.mp4"
            path.write_bytes(answer.content)
            media = read_media(path, fps=None, sample_rate_hz=48_000, channels=2)
            assert media.frames is not None and media.waveform is not None
            assert set(read_metadata(path)) <= {"major_brand", "minor_version", "compatible_brands"}
            with av.open(str(path)) as container:
                streams = [
                    (s.codec_context.name, s.duration, s.time_base, dict(s.metadata))
                    for s in container.streams
                ]
                found.append((container.duration, media.frames.shape, media.waveform.shape, streams))
            assert integrated_lufs(media.waveform) == pytest.approx(-23, abs=0.3)
        assert found[0] == found[1]
        rater.send("votes", rater.body(state, ["left"]))


def test_ids_tell_nothing_and_are_of_one_rater(world, client):
    links = world.links(2)
    first, second = (RaterClient(link, client) for link in links)
    mine, theirs = first.state()["task"], second.state()["task"]
    names = [link.rpartition("/")[2] for link in links]
    names += [task[key].rpartition("/")[2] for task in (mine, theirs) for key in ("id", "left", "right")]
    assert len(set(names)) == len(names) and all(len(name) >= 24 for name in names)
    for side in ("left", "right"):
        assert client.get(f"{second.link}/{mine[side]}").status_code == 404
    stolen = second.send("votes", {**first.body(first.state(), ["left"]), "task": mine["id"]})
    assert stolen.status_code == 404 and num_ballots(world) == 0
    reference = mine["references"][0]
    assert client.get(f"{first.link}/{reference}").status_code == 200
    assert client.get(f"{second.link}/{reference}").status_code == 404


def test_a_rater_sees_no_model_and_no_result(world, client):
    rater = RaterClient(world.links(1)[0], client)
    rater.vote("left")
    said = json.dumps(rater.state()) + client.get(rater.link).text
    assert "base" not in said and "ours" not in said and "case-" not in said and "attention" not in said
    link = rater.link.rpartition("/")[2]
    for path in ("surveys", "surveys/1/results", "surveys/1/votes.jsonl", "surveys/1/results.csv"):
        for headers in ({}, {"Authorization": f"Bearer {link}"}, {"Authorization": "Basic x"}):
            answer = client.get(f"{world.url}/owner/{path}", headers=headers)
            assert answer.status_code == 401 and answer.json()["code"] == "token"
    refused = client.post(f"{world.url}/owner/surveys/1/links", json={"count": 1})
    assert refused.status_code == 401


def test_links_are_made_counted_closed_and_opened(world, client):
    made = client.post(f"{world.url}/owner/surveys/1/links", json={"count": 3}, headers=world.owner).json()
    assert [one["name"] for one in made] == ["rater-001", "rater-002", "rater-003"]
    rater = RaterClient(world.url + made[1]["path"], client)
    rater.vote("left")
    shown = world.results()["raters"]
    assert [(one["name"], one["done"]) for one in shown] == [
        ("rater-001", 0),
        ("rater-002", 1),
        ("rater-003", 0),
    ]
    path = f"{world.url}/owner/surveys/1/raters/{shown[1]['id']}"
    before = rater.state()
    assert client.post(path, json={"closed": True}, headers=world.owner).status_code == 200
    for answer in (
        client.get(f"{rater.link}/state"),
        client.get(rater.link),
        client.get(f"{rater.link}/{before['task']['left']}"),
        rater.send("votes", rater.body(before, ["left"])),
    ):
        assert answer.status_code == 410
    client.post(path, json={"closed": False}, headers=world.owner)
    assert rater.state() == before
    with reading(world.site.engine) as connection:
        stored = connection.execute(select(tables.raters.c.link_sha256)).scalars().all()
    assert not {one["path"].rpartition("/")[2] for one in made} & set(stored), "only digests are kept"


def test_ranges(world, client):
    rater = RaterClient(world.links(1)[0], client)
    url = f"{rater.link}/{rater.state()['task']['left']}"
    whole = client.get(url).content
    size = len(whole)
    for asked, first, last in (
        ("0-0", 0, 0),
        ("5-99", 5, 99),
        ("7-", 7, size - 1),
        ("-10", size - 10, size - 1),
    ):
        answer = client.get(url, headers={"Range": f"bytes={asked}"})
        assert answer.status_code == 206 and answer.content == whole[first : last + 1]
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert client.get(url, headers={"Range": f"bytes={size}-"}).status_code == 416
    assert client.get(url, headers={"Range": "bytes=9-3"}).status_code == 416
    for odd in ("bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=x-y"):
        assert client.get(url, headers={"Range": odd}).content == whole
    assert client.head(url).headers["content-length"] == str(size)


def test_the_page_equals_nava_gsb_stats_to_the_last_digit(world, client, tmp_path, capsys):
    rng = np.random.default_rng(3)
    for link in world.links(4):
        RaterClient(link, client).vote_all(rng, world)
    votes = tmp_path / "votes.jsonl"
    world.export(votes)
    assert main(["gsb", "stats", str(votes), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    shown = world.results()
    assert shown["statistics"] == printed and printed["axes"].keys() == {
        "overall",
        "sync",
        "voice",
        "picture",
    }
    assert set(shown["kinds"]) == {"speech", "dialogue"}
    rows = list(csv.DictReader(io.StringIO(_download(world, client, "results.csv"))))
    first = next(row for row in rows if row["axis"] == "sync" and not row["kind"])
    assert float(first["gsb_low"]) == printed["axes"]["sync"]["pairs"]["base"]["gsb_low"]
    assert json.loads(_download(world, client, "results.json"))["statistics"] == printed


def _download(world, client, name):
    answer = client.get(f"{world.url}/owner/surveys/1/{name}", headers=world.owner)
    assert "attachment" in answer.headers["content-disposition"]
    return answer.text


def test_nava_gsb_export_takes_the_survey_and_makes_pairs(world, client, tmp_path, capsys, monkeypatch):
    rater = RaterClient(world.links(1)[0], client)
    rater.vote_all(np.random.default_rng(1), world)
    sets = world.site.folder.parent / "sets"
    votes, pairs = tmp_path / "votes.jsonl", tmp_path / "pairs.jsonl"
    command = ["gsb", "export", str(votes), "--survey", str(world.site.folder.parent / "votes.db")]
    command += [
        "--clips",
        f"base={sets / 'base'}",
        f"ours={sets / 'ours'}",
        "--out",
        str(pairs),
        "--no-track",
    ]
    assert main(command) == 0
    assert "6 pairs from 24 votes" in capsys.readouterr().out
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert {row["case_id"] for row in rows} == {f"case-{i}" for i in range(6)}
    world.export(tmp_path / "other.jsonl")
    assert votes.read_bytes() == (tmp_path / "other.jsonl").read_bytes()


def test_two_surveys_of_one_database_never_mix(made, tmp_path, client):
    from voting_world import config_of

    from experiments.voting.sets import read_cases

    folder = copy_world(made, tmp_path / "world")
    sets = [(model, folder / "sets" / model) for model in ("base", "ours")]
    engine = open_database(str(folder / "votes.db"))
    add_survey(engine, "second", config_of(axes=("sync",)), read_cases(sets)[:3], folder / "files")
    engine.dispose()
    with served(folder) as world:
        first, second = (
            RaterClient(world.links(1)[0], client),
            RaterClient(world.links(1, "second")[0], client),
        )
        first.vote("left")
        second.vote("right")
        second.vote("right")
        rows = [world.export(tmp_path / f"{number}.jsonl", number) for number in (1, 2)]
        assert [len(found) for found in rows] == [4, 2]
        assert {row["survey"] for row in rows[1]} == {"second"}
        assert [world.results(number)["ballots"] for number in (1, 2)] == [1, 2]
        task = first.state()["task"]["id"]
        assert (
            second.send("votes", {**second.body(second.state(), ["left"]), "task": task}).status_code == 404
        )


def test_comments_are_kept_as_text(world, client):
    comment = "<img src=x onerror=alert(1)> \u202e {{7*7}} ' OR 1=1; DROP TABLE gsb_ballots; --"
    rater = RaterClient(world.links(1)[0], client)
    rater.vote("left", comment=comment)
    assert world.results()["comments"][0]["text"] == comment
    policy = client.get(rater.link).headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy


def test_ballots_cannot_be_changed_or_deleted(world, client):
    RaterClient(world.links(1)[0], client).vote("left")
    for change in ("UPDATE gsb_ballots SET comment = 'x'", "DELETE FROM gsb_ballots"):
        with pytest.raises(Exception, match="append-only"), world.site.engine.begin() as connection:
            connection.execute(text(change))
    assert num_ballots(world) == 1


def test_a_full_disk_is_said_and_the_same_vote_goes_in_later(world, client):
    rater = RaterClient(world.links(1)[0], client)
    state = rater.state()
    rater.watch(state["task"])
    body = rater.body(state, ["left"], comment="x" * 2000)
    with world.site.engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
    limit = [pages]

    from sqlalchemy import event

    @event.listens_for(world.site.engine, "checkout")
    def full(dbapi, record, proxy):
        dbapi.execute(f"PRAGMA max_page_count={limit[0]}")

    answers = [rater.send("votes", {**body, "id": new_id(), "task": body["task"]})]
    while answers[-1].status_code == 200:  # until the free pages of the file are used up
        rater.send("undo", {"id": new_id(), "task": rater.state()["last"]})
        answers.append(rater.send("votes", {**body, "id": new_id()}))
        assert len(answers) < 200
    assert answers[-1].status_code == 507 and answers[-1].json()["code"] == "full"
    limit[0] = pages + 1000
    if rater.state()["done"] == 0:
        assert rater.send("votes", body).json() == {"stored": True, "new": True}
    assert rater.state()["done"] == 1


def test_a_large_body_and_another_type_are_refused(world, client):
    rater = RaterClient(world.links(1)[0], client)
    assert client.post(f"{rater.link}/votes", content=b"{}").status_code == 415
    headers = {"Content-Type": "application/json"}
    large = client.post(f"{rater.link}/votes", content=b" " * (MAX_BODY + 1), headers=headers)
    assert large.status_code == 413
    deep = client.post(f"{rater.link}/votes", content=b"[" * MAX_BODY, headers=headers)
    assert deep.status_code == 400
