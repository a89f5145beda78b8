"""No password, token or key is in any log, tag, parameter, artifact, report or process title.

The server with login is real: PostgreSQL, an S3-like artifact store, MLflow. All that the commands leave is
searched, and the command lines of all processes while they run.
"""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil
import pytest
from kill_world import environment, write_world
from pipeline_repository import end_senders
from services import BUCKET, Login, TeamServer, free_port, team_server

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.timeout(600)]

LOGIN = Login(password="pw/Q7&x=admin+1", database="dbWordQ7x1", s3_secret="s3/SecretQ7+x=1")
OTHERS = {  # what else a user's environment holds
    "MLFLOW_TRACKING_TOKEN": "tokenQ7x-mlflow-1",
    "REWRITER_KEY": "keyQ7x-rewriter-1",
    "TRANSCRIBER_KEY": "keyQ7x-transcriber-1",
    "NAVA_SERVICE_TOKEN": "tokenQ7x-service-1",
    "RAY_AUTH_TOKEN": "tokenQ7x-ray-1",
}


def forms(secret: str, user: str = "admin") -> set[bytes]:
    """A secret as it may be written: as it is, in an address, in JSON, in a header."""
    plain = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), json.dumps(secret)[1:-1]}
    coded: set[str] = set()
    for text in (secret, f"{user}:{secret}", f"nava:{secret}"):
        coded |= {base64.b64encode(text.encode()).decode(), base64.urlsafe_b64encode(text.encode()).decode()}
    return {text.rstrip("=").encode() for text in coded} | {text.encode() for text in plain}


SECRETS = {
    "login": forms(LOGIN.password),
    "database": forms(LOGIN.database),
    "s3": forms(LOGIN.s3_secret),
    **{name: forms(value) for name, value in OTHERS.items()},
}


def found_in(content: bytes) -> list[str]:
    return [name for name, written in SECRETS.items() if any(form in content for form in written)]


class Titles(threading.Thread):
    """Reads the command lines of all processes, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.leaks, self.seen = threading.Event(), set[str](), 0

    def run(self) -> None:
        while not self.ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    title = path.read_bytes()
                    self.seen += 1
                    if names := found_in(title):
                        self.leaks.add(f"{names}: {title[:200]!r}")


@contextmanager
def watched_titles() -> Iterator[Titles]:
    titles = Titles()
    titles.start()
    try:
        yield titles
    finally:
        titles.ended.set()
        titles.join()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    folder = tmp_path_factory.mktemp("team")
    with team_server(folder, LOGIN) as server:
        yield server


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Trainings of a step: of the model, and of an alignment, which ends with a page."""
    made = write_world(tmp_path_factory.mktemp("world"))
    short = ["--nproc", "1", "--set", "pretrain.stages.stage1.steps=2"]
    align = [part for part in made["align"] if part != "--no-report"]
    align[align.index("--nproc") + 1] = "1"
    return {
        "pretrain": [*made["out/pretrain/stage1"][:4], *made["out/pretrain/stage1"][6:], *short],
        "align": [*align, "--set", "align.nft.rounds=1"],
    }


def members(team: TeamServer) -> dict[str, dict[str, str]]:
    """What different users set."""
    escaped = quote(LOGIN.password, safe="")
    address = f"admin:{escaped}@127.0.0.1:{team.server.port}"
    aws = {name: value for name, value in team.s3.items() if name.startswith("AWS_")}
    return {
        "variables": {**OTHERS, **aws, **team.client_environment()},
        "address": {**OTHERS, **aws, "MLFLOW_TRACKING_URI": f"http://{address}"},
        "database": {**OTHERS, **team.s3, "MLFLOW_TRACKING_URI": team.backend},
    }


def nava(work: Path, given: Mapping[str, str], *arguments: str) -> int:
    """Runs it, with what it prints in work/printed.txt."""
    with (work / "printed.txt").open("ab") as printed:
        return subprocess.run(
            [sys.executable, "-m", "experiments.cli", *arguments],
            cwd=work,
            env={**environment(""), **given},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            timeout=240,
        ).returncode


def sent(work: Path, given: Mapping[str, str]) -> bool:
    """`nava tracking flush`, again where the sender at work is slow."""
    return any(nava(work, given, "tracking", "flush") == 0 for _ in range(5))


def assert_no_secret(places: Mapping[str, bytes]) -> None:
    assert sum(map(len, places.values())) > 1000
    leaks = {place: names for place, content in places.items() if (names := found_in(content))}
    assert not leaks


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of_the_database(team: TeamServer) -> dict[str, bytes]:
    """Table -> all that is in it."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    with psycopg.connect(team.backend.replace("+psycopg", "")) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        read = {
            name: connection.execute(SQL("SELECT * FROM {}").format(Identifier(name))).fetchall()
            for (name,) in tables
        }
    return {f"table {name}": repr(rows).encode() for name, rows in read.items()}


def objects(team: TeamServer) -> dict[str, bytes]:
    """What lies in the artifact store, and its names."""
    import boto3

    login = {"aws_access_key_id": LOGIN.s3_key, "aws_secret_access_key": LOGIN.s3_secret}
    client = boto3.client(
        "s3", endpoint_url=team.s3["MLFLOW_S3_ENDPOINT_URL"], region_name="us-east-1", **login
    )
    found: dict[str, bytes] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", []):
            found[f"object {item['Key']}"] = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
    return found


def test_the_forms_of_a_secret_are_found():
    header = base64.b64encode(f"admin:{LOGIN.password}".encode())
    for content in (header, quote(LOGIN.password, safe="").encode(), f'"{LOGIN.password}"'.encode()):
        assert found_in(b"x" + content + b"y") == ["login"]
    assert found_in(b"nothing of the kind") == []


@pytest.mark.parametrize("who", ["variables", "address", "database"])
def test_a_tracked_run_leaves_no_secret_anywhere(team, commands, tmp_path, who):
    given = members(team)[who]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "A man says <S>one<E>."}\n')
    try:
        with watched_titles() as titles:
            assert nava(tmp_path, given, *commands["pretrain"]) == 0, (tmp_path / "printed.txt").read_text()
            if who == "variables":
                assert nava(tmp_path, given, *commands["align"]) == 0, (tmp_path / "printed.txt").read_text()
            assert sent(tmp_path, given), (tmp_path / "printed.txt").read_text()
            nava(tmp_path, given, "lineage", "out/pretrain/stage1/model")
            nava(tmp_path, given, "lineage", "no-such-run")
            nava(tmp_path, given, "doctor")
            nowhere = f"http://127.0.0.1:{free_port()}"
            options = [
                "--endpoint",
                nowhere,
                "--model",
                "m",
                "--token-variable",
                "REWRITER_KEY",
                "--tries",
                "1",
            ]
            nava(tmp_path, given, "rewrite", "prompts.jsonl", "--to", "long.jsonl", *options)
            shown(tmp_path, given)
        assert not titles.leaks and titles.seen > 1000
        assert_no_secret(files_of(tmp_path))
        assert_no_secret(rows_of_the_database(team))
        assert_no_secret(objects(team))
        assert_no_secret({str(team.server.log): team.server.log.read_bytes() + b" " * 1000})
    finally:
        end_senders(tmp_path)


def shown(work: Path, given: Mapping[str, str]) -> None:
    """`nava ui` for some seconds: of a database it starts a server."""
    with (work / "ui.txt").open("wb") as printed:
        command = [sys.executable, "-m", "experiments.cli", "ui", "--port", str(free_port())]
        ui = subprocess.Popen(
            command, cwd=work, env={**environment(""), **given}, stdout=printed, stderr=printed
        )
        with suppress(subprocess.TimeoutExpired):
            ui.wait(20)
        below = psutil.Process(ui.pid).children(recursive=True) if ui.poll() is None else []
        ui.send_signal(signal.SIGTERM)
        ui.wait(30)
        psutil.wait_procs(below, timeout=10)


@pytest.mark.parametrize("who", ["variables", "address", "database"])
def test_what_fails_names_no_secret(team, commands, tmp_path, who):
    """Nobody answers; the login is refused."""
    given = members(team)[who]
    port = free_port()
    if who == "database":
        start, _, end = team.backend.rpartition("/")
        gone = {**given, "MLFLOW_TRACKING_URI": f"{start.rpartition(':')[0]}:{port}/{end}"}
        refused = {**given, "MLFLOW_TRACKING_URI": team.backend.replace("/mlflow", "/other")}
    else:
        here = given["MLFLOW_TRACKING_URI"]
        gone = {**given, "MLFLOW_TRACKING_URI": here.replace(str(team.server.port), str(port))}
        other = {"MLFLOW_TRACKING_USERNAME": "nobody"} if who == "variables" else {}
        refused = {**given, **other, "MLFLOW_TRACKING_URI": here.replace("admin:", "nobody:")}
    try:
        for number, broken in enumerate((gone, refused)):
            with watched_titles() as titles:
                assert nava(tmp_path, broken, *commands["pretrain"], "--out", f"out{number}") in (0, 2)
                assert nava(tmp_path, broken, "tracking", "flush", "--out", f"out{number}") == 1
                nava(tmp_path, broken, "lineage", "no-such-run")
                nava(tmp_path, broken, "generate", "p.jsonl", "--model", "models:/nava/1", "--to", "x")
            assert not titles.leaks
        time.sleep(3)  # the sender's own complaint
        said = (tmp_path / "printed.txt").read_text()
        assert "not sent" in said
        assert_no_secret(files_of(tmp_path))
        assert_no_secret({str(team.server.log): team.server.log.read_bytes() + b" " * 1000})
    finally:
        end_senders(tmp_path)
