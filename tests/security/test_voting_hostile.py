"""Hostile requests to the vote page: no fault of the server, no vote changed, nothing read that is not given.

300 requests quick, 10,000 with `-m 'security and slow'`; each is a function of its number.
"""

import json
import random
import socket

import httpx
import pytest
from sqlalchemy import select
from voting_world import TOKEN, RaterClient, make_world, new_id, served

from experiments.voting import tables
from experiments.voting.database import reading

pytestmark = pytest.mark.security
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")
PATHS = (
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/votes.db",
    "....//....//files/owner.token",
    "static/../../app.py",
    "static/..%5capp.py",
    "static/%00rate.js",
    "texts/../en",
    "texts/en.json",
    "owner.token",
    "files/owner.token",
    "r/",
    "r/%ff%fe",
    "r/' OR '1'='1",
    "owner/surveys/1/results",
    "owner/surveys/-1/results",
    "owner/surveys/99999999999999999999/results",
    "owner/surveys/1/votes.jsonl",
    "docs",
    "openapi.json",
    "\u202e/\u0000",
    "static/" + "a" * 5000,
)
VALUES = (
    None,
    True,
    0,
    -1,
    10**25,
    1e308,
    "",
    "left",
    "x" * 3000,
    "\ud800",
    "\x00",
    "<script>alert(1)</script>",
    [],
    {},
    [[[[]]]],
    {"overall": {"$gt": ""}},
    "'; DROP TABLE gsb_ballots; --",
)
RAW = (
    b"",
    b"null",
    b"[]",
    b"{",
    b"[" * 9000,
    b'{"a":' * 3000,
    b"\xff\xfe",
    b'{"seconds": NaN}',
    b'{"seconds": Infinity}',
    b'{"id": "\\ud800aaaaaaaaaaaaaaaaaaaa"}',
    b'{"seconds": ' + b"9" * 9000 + b"}",
    b" " * 20_000,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("hostile") / "made", num=4)
    with served(folder) as found:
        yield found


def ballots(world):
    with reading(world.site.engine) as connection:
        return connection.execute(select(tables.ballots).order_by(tables.ballots.c.id)).all()


def attack(number, world, rater, other, sent, state, theirs):
    """(method, URL, options) of one request, whose answer may not be a stored vote.

    state, theirs: where the rater and the other one are, which no attack changes.
    """
    rng = random.Random(number)
    kind = rng.randrange(6)
    task = state["task"]["id"]
    if kind == 0:
        path = rng.choice(PATHS)
        link = rng.choice([world.url, rater.link])
        return rng.choice(METHODS), f"{link}/{path}", {}
    if kind == 1:  # a wrong field
        body = rater.body(state, ["left"])
        name = rng.choice([*body, "rater", "__proto__"])
        values = [value for value in VALUES if not (name == "comment" and isinstance(value, str))]
        body[name] = rng.choice(
            values if name != "seconds" else [v for v in values if v is not True and v != 0]
        )
        content = json.dumps(body).encode()
        return "POST", f"{rater.link}/votes", {"content": content, "headers": _json()}
    if kind == 2:  # bytes
        place = rng.choice(["votes", "undo"])
        return "POST", f"{rater.link}/{place}", {"content": rng.choice(RAW), "headers": _json()}
    if kind == 3:  # replayed, stale, of another rater
        bodies = [
            sent,
            {**sent, "id": new_id()},
            {**rater.body(state, ["left"]), "task": theirs["task"]["id"]},
        ]
        body = rng.choice(bodies)
        return "POST", f"{rng.choice([rater, other]).link}/votes", {"json": body}
    if kind == 4:  # the owner's side with a wrong token
        header = rng.choice(
            ["", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \xe9", f"Bearer {TOKEN}x"]
        )
        path = rng.choice(
            ["surveys", "surveys/1/results", "surveys/1/links", "surveys/1/raters/1", "surveys/1/x"]
        )
        headers = {"Authorization": header.encode("latin-1")}
        return rng.choice(METHODS[:5]), f"{world.url}/owner/{path}", {"headers": headers, "content": b"{}"}
    body = {"id": rng.choice(VALUES), "task": rng.choice([task, *VALUES])}
    return "POST", f"{rater.link}/undo", {"content": json.dumps(body).encode(), "headers": _json()}


def _json():
    return {"Content-Type": "application/json"}


def besiege(world, numbers):
    with httpx.Client(timeout=30) as client:
        rater, other = (RaterClient(link, client) for link in world.links(2))
        sent = rater.vote("left")
        before, state, theirs = ballots(world), rater.state(), other.state()
        for number in numbers:
            method, url, options = attack(number, world, rater, other, sent, state, theirs)
            try:
                answer = client.request(method, url, **options)
            except (httpx.InvalidURL, httpx.LocalProtocolError):
                continue
            assert answer.status_code < 500, (number, method, url[:200], answer.text[:300])
            assert b"root:" not in answer.content and TOKEN.encode() not in answer.content
            assert "rater-00" not in answer.text or answer.status_code == 200, number
        assert ballots(world) == before
        assert (rater.state(), other.state()) == (state, theirs) and state["done"] == 1


def test_300_hostile_requests_change_nothing(world):
    besiege(world, range(300))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_10_000_hostile_requests_change_nothing(world):
    besiege(world, range(300, 10_300))


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /r/../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /static/..%2f..%2ftables.py HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET //etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /r/x/votes HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /r/x/votes HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"NONSENSE\r\n\r\n",
    ],
)
def test_raw_requests_are_refused(world, raw):
    port = int(world.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(raw)
        said = connection.recv(65_536)
    assert said.startswith(b"HTTP/1.1 4") or said == b""
    assert b"root:" not in said
    assert httpx.get(f"{world.url}/healthz").status_code == 200
