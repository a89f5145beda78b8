"""A server of surveys and chromium, shared by the tests of a module. Screenshots are kept in the folder
NAVA_SCREENSHOTS, if that is set."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select
from voting_world import TOKEN, World, copy_world, make_world

from experiments.voting import tables
from experiments.voting.database import open_database, reading
from experiments.voting.site import Site
from experiments.voting.texts import read_texts
from pretrain.launch.torchrun import end_with_parent

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
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
