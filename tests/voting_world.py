"""A survey of small clips, its server in a thread, and a rater without a browser."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import select

from experiments.voting import tables
from experiments.voting.database import open_database, reading
from experiments.voting.plan import Shares
from experiments.voting.server import bound_socket, make_server
from experiments.voting.sets import read_cases
from experiments.voting.site import Site
from experiments.voting.store import make_links
from experiments.voting.survey import SurveyConfig, add_survey
from experiments.voting.texts import read_texts
from pretrain.media.write import write_mp4, write_wav

TOKEN = "owner-token-of-the-tests"
MODELS = ("base", "ours")
RATE, FPS = 16_000, 12.0


def write_set(
    folder: Path, model: str, num: int, seconds: float = 0.75, size: int = 32, loud: float = 0.2
) -> Path:
    """A set as `nava generate` writes it: `num` clips of noise pictures and a tone, marked by its model."""
    rng = np.random.default_rng(len(model) + num)
    folder.mkdir(parents=True)
    write_wav(folder.parent / "voice.wav", rng.normal(0, 0.1, RATE), RATE)
    rows = []
    for index in range(num):
        frames = np.repeat(rng.integers(0, 255, (1, size, size, 3), dtype=np.uint8), round(seconds * FPS), 0)
        time_s = np.arange(round(seconds * RATE)) / RATE
        sound = loud * np.sin(2 * np.pi * (200 + 40 * index + len(model)) * time_s)
        name = f"case-{index}.mp4"
        marks = {"comment": f"made by {model}", "checkpoint_id": model}
        write_mp4(folder / name, frames, FPS, sound.astype(np.float32), RATE, marks)
        prompt = f"A person number {index} says: <S>word {index}<E>."
        facts = {"reference_paths": ["../voice.wav"], "meta": {"kind": ("speech", "dialogue")[index % 2]}}
        rows.append({"data_id": f"case-{index}", "prompt": prompt, "video": name, **facts})
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(**values: Any) -> SurveyConfig:
    shares = Shares(repeats=0.2, attention=0.35)
    return SurveyConfig(**{"models": MODELS, "ours": "ours", "per_rater": 6, "shares": shares, **values})


def make_world(folder: Path, num: int = 6, name: str = "survey", **values: Any) -> Path:
    """Sets A and B, a database with one survey, its files; returns the folder."""
    sets = {
        model: write_set(folder / "sets" / model, model, num, loud=loud)
        for model, loud in zip(MODELS, (0.05, 0.3), strict=True)
    }
    engine = open_database(str(folder / "votes.db"))
    add_survey(engine, name, config_of(**values), read_cases(list(sets.items())), folder / "files")
    engine.dispose()
    return folder


def copy_world(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@dataclass
class World:
    site: Site
    url: str

    @property
    def owner(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}

    def links(self, count: int, survey: str = "survey") -> list[str]:
        return [f"{self.url}/r/{secret}" for _, secret in make_links(self.site.engine, survey, count)]

    def original(self, task: str) -> str:
        """The side of the untouched copy in an attention check, "" in other tasks."""
        left, right = tables.clips.alias(), tables.clips.alias()
        query = (
            select(left.c.spoilt, right.c.spoilt)
            .select_from(tables.tasks)
            .join(left, left.c.id == tables.tasks.c.left_clip)
            .join(right, right.c.id == tables.tasks.c.right_clip)
            .where(tables.tasks.c.token == task)
        )
        with reading(self.site.engine) as connection:
            spoilt = connection.execute(query).one()
        return "right" if spoilt[0] else "left" if spoilt[1] else ""

    def results(self, number: int = 1) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/owner/surveys/{number}/results", headers=self.owner)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def export(self, path: Path, number: int = 1) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/owner/surveys/{number}/votes.jsonl", headers=self.owner)
        path.write_text(answer.text, encoding="utf-8")
        return [json.loads(line) for line in answer.text.splitlines()]


@contextmanager
def served(folder: Path, place: str = "", port: int = 0) -> Iterator[World]:
    """The real server on a free port, in a thread."""
    engine = open_database(place or str(folder / "votes.db"), make=False)
    site = Site(engine, folder / "files", TOKEN, read_texts())
    listener = bound_socket("127.0.0.1", port)
    server = make_server(site)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield World(site, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(20)
        engine.dispose()


def new_id() -> str:
    return secrets.token_urlsafe(18)


@dataclass
class RaterClient:
    """What the page does, by HTTP."""

    link: str
    client: httpx.Client

    def state(self) -> dict[str, Any]:
        return self.client.get(f"{self.link}/state").raise_for_status().json()

    def watch(self, task: Mapping[str, Any]) -> dict[str, httpx.Response]:
        return {side: self.client.get(f"{self.link}/{task[side]}") for side in ("left", "right")}

    def body(self, state: Mapping[str, Any], choices: Sequence[str], **more: Any) -> dict[str, Any]:
        answers = {axis: choices[i % len(choices)] for i, axis in enumerate(state["axes"])}
        return {"id": new_id(), "task": state["task"]["id"], "answers": answers, "seconds": 1.5, **more}

    def send(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(f"{self.link}/{path}", json=body)

    def vote(self, *choices: str, **more: Any) -> dict[str, Any]:
        """Watches the next pair and votes; returns what was sent."""
        state = self.state()
        self.watch(state["task"])
        body = self.body(state, choices or ("left",), **more)
        answer = self.send("votes", body)
        assert answer.status_code == 200, answer.text
        return body

    def vote_all(self, rng: np.random.Generator, world: World | None = None) -> list[dict[str, Any]]:
        """Votes by chance; with `world` attention checks are passed."""
        sent = []
        while task := self.state()["task"]:
            known = world.original(task["id"]) if world else ""
            sent.append(self.vote(*([known] if known else rng.choice(["left", "tie", "right"], 4).tolist())))
        return sent
