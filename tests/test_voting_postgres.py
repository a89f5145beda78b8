"""The same votes on PostgreSQL: append-only, one of two tabs, undo, export; skipped where it is missing."""

import threading
from collections import Counter

import httpx
import numpy as np
import pytest
from services import needs_postgres, postgres
from sqlalchemy import text
from voting_world import RaterClient, config_of, make_world, new_id, served

from experiments.voting.database import open_database
from experiments.voting.sets import read_cases
from experiments.voting.store import make_links
from experiments.voting.survey import add_survey

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    programs = needs_postgres()
    folder = make_world(tmp_path_factory.mktemp("postgres") / "made", num=4)
    (folder / "files" / "survey").rename(folder / "files" / "of-sqlite")
    with postgres(programs, "database-word") as place:
        engine = open_database(place)
        cases = read_cases([(model, folder / "sets" / model) for model in ("base", "ours")])
        add_survey(engine, "survey", config_of(), cases, folder / "files")
        engine.dispose()
        with served(folder, place) as found:
            yield found


def test_votes_undo_and_export(world, tmp_path):
    with httpx.Client(timeout=20) as client:
        rater = RaterClient(world.links(1)[0], client)
        sent = rater.vote_all(np.random.default_rng(0), world)
        assert rater.send("votes", sent[-1]).json()["new"] is False
        assert rater.send("undo", {"id": new_id(), "task": sent[-1]["task"]}).json()["new"]
        rater.vote("tie")
    rows = world.export(tmp_path / "votes.jsonl")
    assert len({(row["case_id"], row["repeat"], row.get("attention")) for row in rows}) <= len(sent)
    assert world.results()["statistics"]["votes"]["counted"] > 0


def test_two_tabs_and_two_owners_at_once(world):
    names: list[str] = []

    def make():
        names.extend(name for name, _ in make_links(world.site.engine, "survey", 3))

    makers = [threading.Thread(target=make) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(set(names)) == 12
    link = world.links(1)[0]
    with httpx.Client() as client:
        rater = RaterClient(link, client)
        state = rater.state()
        rater.watch(state["task"])
    answers = []

    def vote():
        with httpx.Client(timeout=30) as own:
            tab = RaterClient(link, own)
            answers.append(tab.send("votes", tab.body(state, ["left"])).status_code)

    tabs = [threading.Thread(target=vote) for _ in range(12)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert Counter(answers) == {200: 1, 409: 11}


@pytest.mark.parametrize("change", ["UPDATE gsb_ballots SET comment = 'x'", "DELETE FROM gsb_ballots"])
def test_ballots_are_append_only(world, change):
    with pytest.raises(Exception, match="append-only"), world.site.engine.begin() as connection:
        connection.execute(text(change))
