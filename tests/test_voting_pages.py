"""Rating in a real browser."""

import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from voting_browser import (
    CHROMIUM,
    Fresh,
    Server,
    answer,
    as_stored,
    done,
    four,
    opened,
    shoot,
    stored,
    until,
    vote,
    watch,
)
from voting_world import TOKEN, RaterClient, World, copy_world

from experiments.voting.database import open_database
from experiments.voting.site import Site
from experiments.voting.texts import read_texts

pytest_plugins = ("voting_browser",)  # fixtures
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"),
]


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
