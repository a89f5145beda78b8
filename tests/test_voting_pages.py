"""The pages in a real browser. Screenshots are kept in the folder NAVA_SCREENSHOTS, if that is set."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from sqlalchemy import func, select
from voting_world import TOKEN, RaterClient, World, copy_world, make_world

from experiments.voting import tables
from experiments.voting.database import open_database, reading
from experiments.voting.export import read_survey, results_page
from experiments.voting.public import public_rows
from experiments.voting.site import Site
from experiments.voting.survey import find_survey
from experiments.voting.texts import read_texts
from pretrain.launch.torchrun import end_with_parent

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"),
]
WAIT_MS = 60_000
KEYS = {"left": "1", "tie": "2", "right": "3"}
CHOICES = ("left", "tie", "right")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("pages") / "made", num=10, per_rater=10)


class Server:
    """`nava gsb serve` as a process that can be killed and started again at its port."""

    def __init__(self, folder: Path, votes: str = "votes.db") -> None:
        self.folder, self.votes = folder, votes
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "token").write_text(TOKEN)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "experiments.cli", "gsb", "serve", "--port", str(self.port)]
        command += ["--votes", self.votes, "--folder", "files", "--token-file", "token"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert f"http://127.0.0.1:{self.port}/owner" in line, line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(made, tmp_path_factory):
    found = Server(copy_world(made, tmp_path_factory.mktemp("served") / "world"))
    yield found
    found.process.send_signal(signal.SIGINT)
    assert found.process.wait(30) == 0


@pytest.fixture(scope="module")
def pages(server):
    engine = open_database(str(server.folder / "votes.db"), make=False)
    yield World(Site(engine, server.folder / "files", TOKEN, read_texts()), f"http://127.0.0.1:{server.port}")
    engine.dispose()


@dataclass
class Fresh(World):
    """The one world of all tests, of which a test sees the votes that were cast since it began."""

    first: int = 0


@pytest.fixture
def world(pages):
    with reading(pages.site.engine) as connection:
        last = connection.execute(select(func.max(tables.ballots.c.id))).scalar() or 0
    return Fresh(pages.site, pages.url, last)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def opened(browser, url, **options):
    context = browser.new_context(
        **{"viewport": {"width": 1100, "height": 900}, "locale": "en-GB", **options}
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    faults = []
    page.on("pageerror", lambda error: faults.append(error))
    page.goto(url)
    yield page
    assert faults == []
    context.close()


def shoot(page, name: str, **options) -> None:
    """Of a page or a part of it."""
    if folder := os.environ.get("NAVA_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), **options)


def until(condition, seconds: float = WAIT_MS / 1000) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def watch(page) -> None:
    page.wait_for_selector("#work:not([hidden])")
    page.keyboard.press("Space")
    for side in ("left", "right"):
        page.wait_for_selector(f"#heard-{side}.yes")
    until(lambda: page.locator("fieldset:disabled").count() == 0)


def answer(page, choices) -> None:
    for choice in choices:
        page.keyboard.press(KEYS[choice])


def done(page) -> int:
    return int(page.inner_text("#count").split()[0])


def vote(page, choices) -> None:
    watch(page)
    answer(page, choices)
    before = done(page)
    page.keyboard.press("Enter")
    until(lambda: done(page) == before + 1)


def stored(world) -> list[dict[str, str]]:
    with reading(world.site.engine) as connection:
        column = tables.ballots.c
        query = select(column.answers).where(column.id > world.first).order_by(column.id)
        return list(connection.execute(query).scalars())


def four(number: int) -> list[str]:
    return [CHOICES[(number + place) % 3] for place in range(4)]


def as_stored(number: int) -> dict[str, str]:
    return dict(zip(("overall", "sync", "voice", "picture"), four(number), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_pairs_by_keyboard_alone_are_stored_as_they_were_given(browser, world):
    number = 0
    for link in world.links(2):
        with opened(browser, link) as page:
            while not page.is_visible("#finished") and number < 20:
                vote(page, four(number))
                number += 1
                page.wait_for_selector("#work:not([hidden]), #finished:not([hidden])")
            shoot(page, "finished")
    assert number == 20
    assert stored(world) == [as_stored(i) for i in range(20)]


def test_nothing_can_be_answered_before_both_clips_were_played(browser, world):
    with opened(browser, world.links(1)[0]) as page:
        page.wait_for_selector("#work:not([hidden])")
        answer(page, four(0))
        page.keyboard.press("Enter")
        assert page.locator("input:checked").count() == 0 and page.is_disabled("#next")
        page.keyboard.press("Space")
        page.wait_for_selector("#heard-left.yes")
        assert page.locator("video").evaluate_all("v => v.filter(x => !x.muted).length") == 1
        page.wait_for_selector("#heard-right.yes")
        answer(page, four(0)[:3])
        assert page.is_disabled("#next"), "one question is open"
        answer(page, four(0)[3:])
        assert page.is_enabled("#next")
    assert stored(world) == []


def test_reload_back_undo_and_coming_back_later(browser, world):
    link = world.links(1)[0]
    with opened(browser, link) as page:
        vote(page, four(0))
        page.reload()
        page.wait_for_selector("#work:not([hidden])")
        assert done(page) == 1
        vote(page, four(1))
        page.goto(f"{world.url}/")
        page.go_back()
        page.wait_for_selector("#work:not([hidden])")
        assert done(page) == 2
        page.keyboard.press("u")
        until(lambda: done(page) == 1)
        vote(page, four(5))
    with opened(browser, link) as page:
        page.wait_for_selector("#work:not([hidden])")
        assert done(page) == 2
    assert stored(world) == [as_stored(0), as_stored(1), {}, as_stored(5)]


def test_a_double_click_is_one_vote(browser, world):
    with opened(browser, world.links(1)[0]) as page:
        watch(page)
        answer(page, four(0))
        page.dblclick("#next")
        until(lambda: done(page) == 1)
        page.wait_for_timeout(500)
    assert stored(world) == [as_stored(0)]


def test_two_tabs_vote_once_on_a_pair(browser, world):
    link = world.links(1)[0]
    with opened(browser, link) as first:
        second = first.context.new_page()
        second.goto(link)
        for page in (first, second):
            watch(page)
        answer(first, four(0))
        answer(second, four(1))
        first.keyboard.press("Enter")
        until(lambda: done(first) == 1)
        second.keyboard.press("Enter")
        second.wait_for_selector("text=voted on in another window")
        until(lambda: done(second) == 1)
    assert stored(world) == [as_stored(0)]


@pytest.mark.parametrize("seconds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_lost_connection_loses_and_doubles_nothing(browser, world, seconds):
    with opened(browser, world.links(1)[0]) as page:
        watch(page)
        answer(page, four(0))
        page.context.set_offline(True)
        page.keyboard.press("Enter")
        page.wait_for_selector("#status.warn")
        shoot(page, "offline")
        page.wait_for_timeout(1000 * seconds)
        assert stored(world) == [] and page.is_visible("#status.warn")
        page.context.set_offline(False)
        until(lambda: done(page) == 1)
        vote(page, four(1))
    assert stored(world) == [as_stored(0), as_stored(1)]


def test_an_answer_that_never_arrived_is_not_counted_twice(browser, world):
    """The server stored the vote, but its answer was lost."""
    with opened(browser, world.links(1)[0]) as page:
        lost = []

        def lose(route):
            route.fetch()
            lost.append(1)
            route.abort()

        page.route("**/votes", lose, times=1)
        vote(page, four(0))
        assert lost == [1]
    assert stored(world) == [as_stored(0)]


@pytest.mark.slow
def test_a_killed_and_restarted_server_loses_and_doubles_nothing(browser, world, server):
    with opened(browser, world.links(1)[0]) as page:
        vote(page, four(0))
        watch(page)
        answer(page, four(1))
        server.kill()
        page.keyboard.press("Enter")
        page.wait_for_selector("#status.warn")
        server.start()
        until(lambda: done(page) == 2)
        vote(page, four(2))
    assert stored(world) == [as_stored(i) for i in range(3)]


@contextmanager
def small_disk(folder: Path, kib: int):
    """A disk of its own at the folder, which is then easily full."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_at_the_moment_of_a_vote(browser, made, tmp_path):
    """The rater is told, the page keeps the vote and sends it by itself once there is room."""
    folder = copy_world(made, tmp_path / "world")
    with small_disk(folder / "disk", 2048):
        shutil.move(folder / "votes.db", folder / "disk" / "votes.db")
        served = Server(folder, "disk/votes.db")
        try:
            engine = open_database(str(folder / "disk" / "votes.db"), make=False)
            site = Site(engine, folder / "files", TOKEN, read_texts())
            full_disk_vote(
                browser, World(site, f"http://127.0.0.1:{served.port}"), folder / "disk" / "filler"
            )
            engine.dispose()
        finally:
            served.kill()


def full_disk_vote(browser, world, filler: Path) -> None:
    with httpx.Client(timeout=60) as client:
        rater = RaterClient(world.links(1)[0], client)
        with opened(browser, world.links(1)[0]) as page:
            watch(page)
            answer(page, four(0))
            fill(filler)
            used = 0
            while rater.state()["task"]:  # the room that the database had left
                body = rater.body(rater.state(), ["left"], comment="x" * 2000)
                rater.watch(rater.state()["task"])
                reply = rater.send("votes", body)
                used += reply.status_code == 200
                if reply.status_code == 507:
                    break
            assert rater.state()["task"] is not None, "the disk was never full"
            page.keyboard.press("Enter")
            page.wait_for_selector("#status.warn:has-text('the server has no room')")
            shoot(page, "full_disk")
            assert len(stored(Fresh(world.site, world.url))) == used
            filler.unlink()
            until(lambda: done(page) == 1)
            vote(page, four(1))
    rows = stored(Fresh(world.site, world.url))
    assert rows[used:] == [as_stored(0), as_stored(1)]


def test_a_page_closed_before_its_vote_was_sent_sends_it_when_opened_again(browser, world, server):
    link = world.links(1)[0]
    with opened(browser, link) as page:
        watch(page)
        answer(page, four(0))
        page.context.set_offline(True)
        page.keyboard.press("Enter")
        page.wait_for_selector("#status.warn")
        page.close()
        page.context.set_offline(False)
        again = page.context.new_page()
        again.goto(link)
        again.wait_for_selector("#work:not([hidden])")
        assert done(again) == 1
    assert stored(world) == [as_stored(0)]


VIEWS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark", "reduced_motion": "reduce"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "phone_dark": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "color_scheme": "dark"},
    "chinese": {"locale": "zh-CN"},
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_pair_in_themes_widths_and_languages(browser, world, name):
    with opened(browser, world.links(1)[0], **VIEWS[name]) as page:
        watch(page)
        answer(page, four(0)[:2])
        page.wait_for_timeout(300)
        shoot(page, f"rate_{name}")
        assert fits(page)
        expected = "哪个片段更好？" if name == "chinese" else "Which clip is better?"
        assert page.inner_text("h1") == expected
        if name == "phone":
            page.tap("fieldset:last-of-type .choices label:nth-child(2)")
            assert page.locator("input[value=tie]:checked").count() >= 1
        check_accessible(page)


@pytest.fixture(scope="module")
def voted(pages):
    """The world after four raters have voted by chance."""
    rng = np.random.default_rng(5)
    with httpx.Client(timeout=60) as client:
        for link in pages.links(4):
            RaterClient(link, client).vote_all(rng, pages)
    return pages


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_results_and_links_in_themes_and_widths(browser, voted, name):
    with opened(browser, f"{voted.url}/owner#{TOKEN}", **VIEWS[name]) as page:
        page.wait_for_selector("#intervals svg")
        assert fits(page)
        shoot(page, f"owner_{name}", full_page=True)
        check_accessible(page)
        page.fill("#count", "2")
        page.click("#make button")
        page.wait_for_selector("#made:not([hidden])")
        shoot(page.locator("section:has(#make)"), f"links_{name}")
        assert fits(page)
        check_accessible(page)
        link = page.input_value("#links").splitlines()[0].split("\t")[1]
    with opened(browser, link, **VIEWS[name]) as page:
        page.goto(f"{voted.url}/r/nobody-was-given-this-link")
        page.wait_for_selector("h1")
        shoot(page, f"unknown_{name}")
        check_accessible(page)


@pytest.mark.parametrize(
    ("locale", "heading"), [("en-GB", "Ranking (Davidson)"), ("zh-CN", "排名（Davidson）")]
)
def test_the_page_of_results_stands_alone_in_both_languages(browser, voted, tmp_path, locale, word):
    _, found = read_survey(str(voted.site.engine.url.database), None)
    (tmp_path / "votes.html").write_text(results_page(found), encoding="utf-8")
    with opened(browser, (tmp_path / "votes.html").as_uri(), locale=locale) as page:
        page.wait_for_selector("#intervals svg")
        assert page.locator("h2", has_text=word).count() == 1
        assert page.locator("svg").count() == 8 and not page.is_visible("#make")
        assert fits(page)


def fits(page) -> bool:
    """Nothing to scroll sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def check_accessible(page) -> None:
    """Nothing serious by axe-core, where its package is there."""
    axe = _axe()
    if axe is None:
        return
    session = page.context.new_cdp_session(page)  # the page's own policy forbids foreign scripts
    session.send("Runtime.evaluate", {"expression": axe})
    run = "axe.run().then(found => JSON.stringify(found.violations))"
    answered = session.send(
        "Runtime.evaluate", {"expression": run, "awaitPromise": True, "returnByValue": True}
    )
    found = json.loads(answered["result"]["value"])
    serious = [
        (one["id"], [node["html"][:200] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


def _axe() -> str | None:
    try:
        import axe_playwright_python
    except ModuleNotFoundError:
        return None
    return next(Path(str(axe_playwright_python.__file__)).parent.rglob("axe.min.js")).read_text(
        encoding="utf-8"
    )


def test_the_owner_makes_closes_and_exports(browser, world, tmp_path):
    with opened(browser, f"{world.url}/owner") as page:
        page.fill("#token", "wrong-token-of-somebody")
        page.press("#token", "Enter")
        page.wait_for_selector("text=missing or wrong")
        page.fill("#token", TOKEN)
        page.press("#token", "Enter")
        page.wait_for_selector("#numbers strong")
        page.fill("#count", "2")
        page.click("text=Make")
        page.wait_for_selector("#made:not([hidden])")
        made = [line.split("\t") for line in page.input_value("#links").splitlines()]
        names, links = [name for name, _ in made], [link for _, link in made]
        shoot(page, "links")
        assert len(links) == 2
    with opened(browser, links[0]) as page:
        page.wait_for_selector("#work:not([hidden])")
        page.fill("#comment", "<b>bold</b><img src=x onerror=alert(1)>")
        page.locator("#comment").blur()
        vote(page, four(0))
    with opened(browser, f"{world.url}/owner#{TOKEN}") as page:
        page.wait_for_selector("#comments li:has-text('<b>bold</b>')")
        assert page.locator("#comments img, #comments b").count() == 0
        assert TOKEN not in page.url
        with page.expect_download() as download:
            page.click("text=votes.jsonl")
        download.value.save_as(tmp_path / "votes.jsonl")
        page.click(f"[aria-label='Close the link of {names[0]}']")
        page.wait_for_selector(f"[aria-label='Open the link of {names[0]}']")
    with reading(world.site.engine) as connection:
        assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == len(
            public_rows(connection, find_survey(connection))
        )
    with opened(browser, links[0]) as page:
        page.wait_for_selector("text=This link is closed")
        shoot(page, "closed")
