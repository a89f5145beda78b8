"""`nava doctor --security` on set-ups with open doors, and decoders that one token keeps busy."""

import asyncio
import contextlib
import io
import json
import os
import socket
import threading
import time
import wave

import pytest
from front_world import Echo, backend, front_of
from service_attacks import mp4

from experiments import security_check
from experiments.cli import main
from orchestration.service.decode import DecodeJob
from orchestration.service.decoders import Decoders
from orchestration.service.fair import Caller
from orchestration.service.limits import Limits

pytestmark = pytest.mark.security


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(security_check, "_listening", lambda: [("127.0.0.1", 80, "a")])
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "out" / "service").mkdir(parents=True)
    (tmp_path / "auth_token").write_text("x" * 64)
    (tmp_path / "auth_token").chmod(0o600)
    return tmp_path


def doctor(capsys) -> tuple[int, dict[str, str]]:
    code = main(["doctor", "--security", "--json"])
    rows = json.loads(capsys.readouterr().out)
    return code, {row["what"]: row["level"] for row in rows}


def test_a_closed_set_up_passes(world, capsys):
    code, found = doctor(capsys)
    assert code == 0 and "open" not in found.values(), found


OPEN_DOORS = {
    "service/token": lambda world, _: (world / "out/service/token").write_text("t" * 40),
    "auth_token": lambda world, _: (world / "auth_token").chmod(0o644),
    "RAY_AUTH_MODE=disabled": lambda _, patch: patch.setenv("RAY_AUTH_MODE", "disabled"),
    "umask 000": lambda _, patch: os.umask(0),
}


@pytest.mark.parametrize("name", OPEN_DOORS)
def test_an_open_door_is_told(world, monkeypatch, capsys, name):
    mask = os.umask(0o022)
    try:
        OPEN_DOORS[name](world, monkeypatch)
        code, found = doctor(capsys)
    finally:
        os.umask(mask)
    assert code == 1
    assert [level for what, level in found.items() if what.endswith(name)] == ["open"], found


def test_logins_and_listeners_are_told_without_the_secret(world, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cret@host/x")
    monkeypatch.setattr(security_check, "_listening", lambda: [("0.0.0.0", 8123, "\x1b[2Jnava")])
    assert main(["doctor", "--security"]) == 0
    said = capsys.readouterr().out
    assert "s3cret" not in said and "\x1b" not in said
    assert "MLFLOW_TRACKING_URI=https://host/x" in said and "all interfaces, port 8123" in said


def test_a_service_without_limits_is_told():
    with backend(Echo()) as behind, front_of(behind) as (port, _):
        assert security_check._limits_of("127.0.0.1", port).level == "ok"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def read_on() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as sock:
                total = 0
                while total < security_check.HEAD_BYTES and (piece := sock.recv(65_536)):
                    total += len(piece)
                sock.sendall(b"HTTP/1.1 401 No\r\n\r\n")

        threading.Thread(target=read_on, daemon=True).start()
        assert security_check._limits_of("127.0.0.1", listener.getsockname()[1]).level == "open"


def _wav() -> bytes:
    with io.BytesIO() as file:
        with wave.open(file, "wb") as writer:
            writer.setparams((1, 2, 16_000, 0, "NONE", ""))
            writer.writeframes(bytes(3200))
        return file.getvalue()


def test_slow_clips_of_one_token_do_not_delay_another_one(tmp_path):
    """24 small files that decode slowly, before an honest one of another token."""
    (tmp_path / "slow.mp4").write_bytes(mp4(240, 352, 640))
    (tmp_path / "quick.wav").write_bytes(_wav())

    async def run() -> tuple[float, float]:
        decoders = Decoders(Limits(decoders=1), [tmp_path.resolve()])

        async def decode(name: str, caller: Caller) -> float:
            job = DecodeJob(str(tmp_path.resolve() / name), None, [], None, None)
            async with decoders.decoded(job, None, caller):
                return time.monotonic()

        await decode("quick.wav", Caller("honest"))  # its process has started
        started = time.monotonic()
        slow = [asyncio.create_task(decode("slow.mp4", Caller("heavy"))) for _ in range(24)]
        await asyncio.sleep(0.05)
        honest = await decode("quick.wav", Caller("honest")) - started
        first = min([await slow[0]]) - started
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert decoders.bytes.held == 0 and decoders._slots.held == 0
        await asyncio.to_thread(decoders.close)
        return honest, first

    honest, first = asyncio.run(run())
    assert honest < max(3 * first, 5.0), (
        honest,
        first,
    )  # in turn; after all of them it were 24 times `first`
