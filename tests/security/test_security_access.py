"""Tokens of the service: digests, modes, rotation, scopes, rates, turns; full disks; secrets of jobs."""

import asyncio
import json
import os
import random
import stat
import threading
import time
from pathlib import Path

import pytest
from front_world import TOKEN, Echo, backend, connect, exchange, front_of, read_answer, request, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.cli import main
from experiments.jobs.request import Request
from experiments.jobs.secret_names import looks_secret
from orchestration.service.access import add_token, read_tokens, revoke_token
from orchestration.service.fair import Caller, FairBytes, FairSlots
from orchestration.service.limits import Limits
from orchestration.service.token import token_from

pytestmark = pytest.mark.security


def test_a_token_is_kept_as_a_digest_in_a_private_file(tmp_path):
    path = tmp_path / "service" / "tokens.json"
    token = add_token(path, "team", ("score", "metrics"), 60, 4)
    assert token not in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    (kept,) = read_tokens(path)
    assert (kept.name, kept.scopes, kept.per_minute, kept.in_flight) == ("team", ("score", "metrics"), 60, 4)
    second = add_token(path, "team", replace=True)
    (rotated,) = read_tokens(path)
    assert second != token and rotated.sha256 != kept.sha256 and rotated.per_minute == 60
    for name, replace in (
        ("team", False),
        ("default", False),
        ("other", True),
        ("a b", False),
        ("x" * 40, False),
    ):
        with pytest.raises(ValueError):
            add_token(path, name, replace=replace)
    revoke_token(path, "team")
    assert read_tokens(path) == ()
    with pytest.raises(ValueError, match="no token 'team'"):
        revoke_token(path, "team")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"tokens": 3}',
        b'{"tokens": [{"name": "a"}]}',
        b'{"tokens": [{"name": "a", "sha256": "00", "scopes": ["score"]}]}',
        b'{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["root"]}]}' % (b"0" * 64),
        b'{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["score"], "per_minute": -1}]}' % (b"0" * 64),
        b'{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["score"], "in_flight": 1e99}]}' % (b"0" * 64),
        b'{"tokens": [{"name": "\\u001b[2J", "sha256": "%s", "scopes": ["score"]}]}' % (b"0" * 64),
        b"\xff\xfe",
    ],
)
def test_a_file_of_tokens_that_is_none_is_one_line(tmp_path, content):
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ValueError) as refused:
        read_tokens(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    path.chmod(0o666)
    with pytest.raises(ValueError, match="others may write it"):
        read_tokens(path)


def test_tokens_count_at_once_and_are_refused_at_once(tmp_path):
    echo, path = Echo(), tmp_path / "tokens.json"
    with backend(echo) as behind, front_of(behind, Limits(), tmp_path) as (port, _):

        def status(token: str, target: str = "/v1/rewards") -> int:
            return exchange(port, request(target, token=token, method="GET"))[0]

        assert status("x" * 43) == 401
        token = add_token(path, "team")
        assert wait_for(lambda: status(token) == 200, 3)
        assert status(token, "/metrics") == 403 and status(TOKEN, "/metrics") == 200
        rotated = add_token(path, "team", replace=True)
        assert wait_for(lambda: status(token) == 401, 3) and status(rotated) == 200
        path.write_text("{broken")  # an editor at work: what counted still does
        time.sleep(0.7)
        assert status(rotated) == 200 and status(TOKEN) == 200
        path.unlink()
        assert wait_for(lambda: status(rotated) == 401, 3)
    audit = (tmp_path / "audit.jsonl").read_text()
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600
    assert not any(secret in audit for secret in (token, rotated, TOKEN))
    assert {json.loads(line)["token"] for line in audit.splitlines()} == {"", "team", "default"}


def test_rates_of_a_token(tmp_path):
    echo, path = Echo(), tmp_path / "tokens.json"
    slow, few = add_token(path, "slow", per_minute=3), add_token(path, "few", in_flight=2)
    with backend(echo) as behind, front_of(behind, Limits(), tmp_path) as (port, _):
        answers = [exchange(port, request("/v1/rewards", token=slow, method="GET")) for _ in range(5)]
        assert [status for status, *_ in answers] == [200, 200, 200, 429, 429]
        assert b"retry-after: " in answers[-1][1].lower()
        echo.pause_s = 0.7
        socks = [connect(port) for _ in range(3)]
        for sock in socks[:2]:
            sock.sendall(request(token=few))
        assert wait_for(lambda: echo.running == 2)
        socks[2].sendall(request(token=few))
        assert [read_answer(sock)[0] for sock in reversed(socks)] == [429, 200, 200]


def test_a_heavy_token_does_not_delay_another(tmp_path):
    echo = Echo()
    echo.pause_s = 0.1
    path, limits = tmp_path / "tokens.json", Limits(active=2)
    heavy, light = add_token(path, "heavy"), add_token(path, "light")
    with backend(echo) as behind, front_of(behind, limits, tmp_path) as (port, front):
        socks = [connect(port) for _ in range(60)]
        for sock in socks:
            sock.sendall(request(token=heavy))
        assert wait_for(lambda: front.slots.waiting >= 50)
        started = time.monotonic()
        assert exchange(port, request(token=light))[0] == 200
        assert time.monotonic() - started < 0.8  # the heavy ones take 3 s
        for sock in socks:
            sock.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2), st.integers(0, 2**31))
def test_slots_are_never_too_many_and_shared_evenly(slots, guests, seed):
    """Whatever comes and is cancelled: at most slots + guests are held, and none is lost."""
    draws = random.Random(seed)

    async def run() -> None:
        fair, running = FairSlots(slots, guests), {"a": 0, "b": 0, "c": 0}

        async def hold(token: str) -> None:
            async with fair.slot(Caller(token, str(draws.randrange(2)))):
                running[token] += 1
                try:
                    assert sum(running.values()) <= fair.held <= slots + guests
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                finally:
                    running[token] -= 1

        tasks = []
        for _ in range(40):
            tasks.append(asyncio.create_task(hold(draws.choice("aaaabc"))))
            if draws.random() < 0.3:
                draws.choice(tasks).cancel()
            if draws.random() < 0.5:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        failed = [task.exception() for task in tasks if not task.cancelled() and task.exception()]
        assert not failed and fair.held == 0 and fair.waiting == 0 and not fair._queues

    asyncio.run(run())


def test_memory_of_one_token_leaves_room_for_another():
    async def run() -> None:
        held = FairBytes(100)
        assert [await held.take(25, "heavy") for _ in range(2)] == [25, 25]
        third = asyncio.create_task(held.take(25, "heavy"))
        await asyncio.sleep(0.01)
        assert not third.done()
        assert await asyncio.wait_for(held.take(50, "light"), 1.0) == 50
        held.give_back(25, "heavy")
        assert await asyncio.wait_for(third, 1.0) == 25 and held.held == 100
        assert await asyncio.wait_for(FairBytes(10).take(10, "one"), 1.0) == 10  # one request always fits

    asyncio.run(run())


def test_turns_alternate_between_tokens():
    async def run() -> list[str]:
        fair, order = FairSlots(1), []

        async def hold(token: str) -> None:
            async with fair.slot(Caller(token)):
                order.append(token)
                await asyncio.sleep(0)

        heavy = [asyncio.create_task(hold("heavy")) for _ in range(20)]
        await asyncio.sleep(0)
        light = [asyncio.create_task(hold("light")) for _ in range(3)]
        await asyncio.gather(*heavy, *light)
        return order

    order = asyncio.run(run())
    assert [index for index, token in enumerate(order) if token == "light"][-1] <= 7


def test_a_full_disk_leaves_no_empty_token(tmp_path, monkeypatch):
    monkeypatch.delenv("NAVA_API_TOKEN", raising=False)
    place = tmp_path / "service" / "token"
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot be written .*free the disk"):
        token_from(None, place)
    assert list(place.parent.iterdir()) == []
    monkeypatch.setattr(os, "fsync", real)
    place.touch()  # as a service before this left it
    token, _ = token_from(None, place)
    assert len(token) > 40 and stat.S_IMODE(place.stat().st_mode) == 0o600
    place.chmod(0o644)
    assert token_from(None, place)[0] == token and stat.S_IMODE(place.stat().st_mode) == 0o600


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "abc",
    "HF_TOKEN": "x",
    "WANDB_API_KEY": "x",
    "wandb_api_key": "x",
    "MY_PASSWORD": "x",
    "DB_PASS": "x",
    "OPENAIKEY_APIKEY": "x",
    "GOOGLE_APPLICATION_CREDENTIALS_JSON": "x",
    "MLFLOW_TRACKING_URI": "https://me:pass@host/x",
    "X": "hf_abcdefghij",
    "Y": "Bearer abcdefghijkl",
    "Z": "-----BEGIN RSA PRIVATE KEY-----",
}
PLAIN = {
    "TOKENIZERS_PARALLELISM": "false",
    "NCCL_DEBUG": "INFO",
    "MAX_TOKENS": "10",
    "MLFLOW_TRACKING_URI": "https://host/x",
    "OMP_NUM_THREADS": "4",
    "KEYBOARD": "de",
    "COMPASS": "x",
    "PATH": "/bin",
}


@pytest.mark.parametrize(("name", "value"), SECRETS.items())
@pytest.mark.parametrize("kind", ["slurm", "node", "kubernetes"])
def test_no_launcher_writes_a_secret(name, value, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = ["--image", "i"] if kind == "kubernetes" else []
    with pytest.raises(SystemExit) as stopped:
        main(["launch", kind, "mini", "--gpus-per-node", "1", "--dry-run", "--env", f"{name}={value}", *more])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and f"--env {name}=...: it looks like a secret" in said.err
    assert said.err.count("\n") == 1 and f"={value}" not in said.err + said.out


def test_what_is_no_secret_passes():
    assert not [name for name, value in PLAIN.items() if looks_secret(name, value)]
    assert all(looks_secret(name, value) for name, value in SECRETS.items())


def test_a_secret_goes_by_name(tmp_path, monkeypatch, capsys):
    from experiments.jobs import node, slurm

    request_by_name = Request(recipe="mini", gpus_per_node=1, env=("HF_TOKEN",))
    text = slurm.render(request_by_name, slurm.SlurmOptions())
    assert "#SBATCH --export=ALL,HF_TOKEN\n" in text and "export HF_TOKEN" in node.render(request_by_name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(SystemExit):
        main(["launch", "node", "mini", "--gpus-per-node", "1", "--env", "HF_TOKEN"])
    assert "--env HF_TOKEN: not in this environment" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["launch", "kubernetes", "mini", "--image", "i", "--dry-run", "--env", "HF_TOKEN"])
    assert "give --secret HF_TOKEN=SECRET:KEY" in capsys.readouterr().err
    with pytest.raises(ValueError) as refused:
        Request(recipe="mini", env=("sk-very secret",))
    assert "sk-very" not in str(refused.value)


def test_a_password_in_the_tracking_uri_is_nowhere(tmp_path, monkeypatch):
    """The store's address as it is shown, kept and compared, and what libraries say of it."""
    from experiments.runs.store_uri import connection_uri, scrubbed, store_uri

    for uri in (
        "https://me:s3cr%40t@host/x?token=abcdef",
        "postgresql://me:s3cr%40t@host/db",
        "https://s3cr%40t@h",
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "s3cr" in connection_uri(tmp_path)
        shown = store_uri(tmp_path) + scrubbed(f"cannot reach {uri} (s3cr@t, s3cr%40t)")
        assert "s3cr" not in shown and "abcdef" not in shown


def test_no_thread_is_left(tmp_path: Path):
    before = threading.active_count()
    with backend(Echo()) as behind, front_of(behind):
        pass
    assert wait_for(lambda: threading.active_count() <= before, 5)
