"""What a rater could measure tells nothing about which model a clip is of."""

import random
import time
from contextlib import contextmanager

import httpx
import pytest
from scipy.stats import mannwhitneyu
from sqlalchemy import select
from voting_world import RaterClient, make_world, served

from experiments.voting import app, tables
from experiments.voting.database import reading

REQUESTS = 400
P = 1e-4  # a chance of 1 in 10,000 that equal times look unequal


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("blind") / "made", num=4, per_rater=4)
    with served(folder) as found:
        yield found


@pytest.fixture(scope="module")
def clips(world):
    """(model, URL) of the clips of two raters' votes, both of each pair, as only the owner can know."""
    found = []
    tasks, shown = tables.tasks, tables.clips
    links = world.links(2)
    with reading(world.site.engine) as connection:
        for number, link in enumerate(links):
            query = select(tasks).where(tasks.c.kind == "vote", tasks.c.rater_id == number + 1)
            models = dict(connection.execute(select(shown.c.id, shown.c.model)).all())
            for task in connection.execute(query).mappings():
                found += [
                    (models[task[f"{side}_clip"]], f"{link}/clips/{task[f'{side}_token']}")
                    for side in ("left", "right")
                ]
    assert {model for model, _ in found} == {"base", "ours"} and len(found) == 16
    return found


def times_of(clips, count: int = REQUESTS) -> dict[str, list[float]]:
    """Seconds of many small ranges of each model's clips, in a mixed order."""
    rng, times = random.Random(0), {"base": [], "ours": []}
    with httpx.Client() as client:
        for _, url in clips:
            client.get(url)  # the first showing is written down
        for number in range(count):
            model, url = rng.choice(clips)
            first = 1000 * (number % 4)
            begun = time.perf_counter()
            client.get(url, headers={"Range": f"bytes={first}-{first + 999}"})
            times[model].append(time.perf_counter() - begun)
    return times


def tells_apart(times) -> bool:
    return mannwhitneyu(times["base"], times["ours"]).pvalue < P


def test_times_do_not_tell_the_models_apart(clips):
    assert not tells_apart(times_of(clips))


@pytest.mark.parametrize(
    ("count", "late_s"), [(REQUESTS, 0.005), pytest.param(4000, 0.001, marks=pytest.mark.slow)]
)
def test_times_would_tell_a_model_that_is_answered_later(clips, monkeypatch, count, late_s):
    """The test above can fail: a few ms more for one model are found."""
    late = {url.rpartition("/")[2] for model, url in clips if model == "ours"}
    answer = app.media_answer

    def later(request, path, kind):
        if request.url.path.rpartition("/")[2] in late:
            time.sleep(late_s)
        return answer(request, path, kind)

    monkeypatch.setattr(app, "media_answer", later)
    assert tells_apart(times_of(clips, count))


@pytest.mark.slow
def test_times_of_ten_thousand_requests_do_not_tell_the_models_apart(clips):
    assert not tells_apart(times_of(clips, 10_000))


@contextmanager
def answers(clips, **headers):
    with httpx.Client() as client:
        yield [client.get(url, headers=headers) for _, url in clips]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
        {"If-None-Match": "*"},
        {"If-None-Match": '"0"'},
        {"Range": "bytes=0-99", "If-Range": '"0"'},
        {"Range": "bytes=0-0"},
        {"Range": "bytes=999999999-"},
        {"Accept-Encoding": "gzip, br"},
        {"Accept": "text/html"},
    ],
)
def test_caches_ranges_and_encodings_answer_alike_for_both_models(clips, headers):
    """Nothing is answered from a cache, none says when a file was made, all answers of a pair are alike."""
    with answers(clips, **headers) as found:
        pass
    for left, right in zip(found[::2], found[1::2], strict=True):
        assert left.status_code == right.status_code != 304
        alike = [{k: v for k, v in one.headers.items() if k != "date"} for one in (left, right)]
        assert alike[0] == alike[1] and alike[0]["cache-control"] == "no-store"
        assert not {"etag", "last-modified", "age", "expires"} & alike[0].keys()
        assert len(left.content) == len(right.content)


def test_the_page_and_its_state_differ_in_nothing_but_random_names(world):
    """Two raters who see one pair with its models on different sides get the same words."""
    with httpx.Client() as client:
        states = [RaterClient(link, client).state() for link in world.links(2)]
        pages = [client.get(link).text for link in world.links(2)]
    assert pages[0] == pages[1]
    tasks = [state["task"] for state in states]
    shown = [{k: v for k, v in task.items() if k in ("id", "left", "right", "references")} for task in tasks]
    assert not set(map(str, shown[0].values())) & set(map(str, shown[1].values()))
    assert set(tasks[0]) == {"id", "left", "right", "prompt", "duration_s", "references"}
    names = [str(task[side]).rpartition("/")[2] for task in tasks for side in ("left", "right")]
    assert len({len(name) for name in names}) == 1 and all(len(name) == 24 for name in names)


def test_no_owner_of_a_link_reaches_files_by_other_names(world):
    """The files on the disk cannot be asked for by their own names or by tricks with paths."""
    link = world.links(1)[0]
    with reading(world.site.engine) as connection:
        files = connection.execute(select(tables.clips.c.file)).scalars().all()
    tries = [f"clips/{name}" for name in files] + [f"clips/{name.removesuffix('.mp4')}" for name in files]
    tries += ["clips/../../votes.db", "clips/..%2f..%2fvotes.db", "clips/%2e%2e%2fowner.token"]
    tries += ["references/x/0", "references/../0", "references/0/-1"]
    with httpx.Client() as client:
        for path in tries:
            assert client.get(f"{link}/{path}").status_code == 404, path
        for name in files:
            for place in ("static", "files/survey", "survey"):
                assert client.get(f"{world.url}/{place}/{name}").status_code == 404
