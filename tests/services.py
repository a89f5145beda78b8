"""What a team keeps its runs on, as processes here: PostgreSQL, an S3-like store, MLflow with login."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from pretrain.launch.torchrun import end_with_parent

ROOT = Path(__file__).parent.parent
BUCKET, ARTIFACTS = "artifacts", "s3://artifacts/mlflow"
SUPERUSER = "postgres"
START_S = 120.0
SERVER_VARIABLES = ("MLFLOW_", "AWS_", "NAVA_", "DVC_", "RANK", "WORLD_SIZE")  # not taken over from outside


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings of MLflow, S3 and DVC; the repository's packages can be imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SERVER_VARIABLES)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **more,
    }


@dataclass
class Service:
    """A process that answers at a port, and can be killed and started again at the same place."""

    command: Sequence[str]
    port: int
    environment: Mapping[str, str]
    folder: Path
    health: str = "/"
    options: Mapping[str, Any] = field(default_factory=dict)  # of subprocess.Popen
    process: subprocess.Popen[Any] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / f"service-{self.port}.log"

    def start(self) -> Service:
        """Start it; returns when it answers."""
        self.launch()
        return self.wait()

    def launch(self) -> None:
        """Start it without waiting for an answer."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_parent,  # also where pytest itself is killed
                **self.options,
            )

    def wait(self) -> Service:
        """Wait until it answers."""
        end = time.monotonic() + START_S
        while not self.answers():
            if self.process is None or self.process.poll() is not None or time.monotonic() > end:
                said = self.log.read_text(errors="replace")[-2000:]
                self.kill()
                raise TimeoutError(f"{self.command[0]} does not answer: {said}")
            time.sleep(0.1)
        return self

    def answers(self) -> bool:
        if not self.health:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2):
                return True
            return False
        with suppress(OSError), urllib.request.urlopen(self.url + self.health, timeout=5):
            return True
        return False

    def processes(self) -> list[psutil.Process]:
        """The service and all processes below it."""
        if self.process is None or self.process.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            me = psutil.Process(self.process.pid)
            return [me, *me.children(recursive=True)]
        return []

    def kill(self) -> None:
        """SIGKILL to all of it."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait()


@contextmanager
def running(service: Service) -> Iterator[Service]:
    try:
        yield service.start()
    finally:
        service.kill()


def mlflow_server(folder: Path, backend: str = "", port: int = 0, **options: Any) -> Service:
    """A server on SQLite in the folder, or on `backend`, which goes by the environment as it may hold a
    password. options: destination (of artifacts), app (its name), environment (more of it)."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", options.get("destination", str(folder / "art"))]
    command += ["--app-name", options["app"]] if "app" in options else []
    environment = clean_environment(
        MLFLOW_BACKEND_STORE_URI=backend or f"sqlite:///{folder / 'server.db'}",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        **options.get("environment", {}),
    )
    return Service(command, port, environment, folder, health="/health")


def postgres_programs() -> Path | None:
    """Folder of initdb and postgres, of Debian's package or on the path; None where they are missing."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "postgres").is_file()), None)


def needs_postgres() -> Path:
    """The programs, or a skipped test with what is missing."""
    pytest.importorskip("psycopg", reason="psycopg[binary] is missing: pip install -e '.[dev]'")
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is missing: pip install -e '.[dev]'")
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is missing: apt-get install postgresql")
    if os.getuid() == 0 and not _has_user(SUPERUSER):
        pytest.skip(f"PostgreSQL does not run as root and there is no user {SUPERUSER!r}")
    return programs


def _has_user(name: str) -> bool:
    with suppress(KeyError):
        pwd.getpwnam(name)
        return True
    return False


@contextmanager
def postgres(programs: Path, password: str) -> Iterator[str]:
    """A cluster with an empty database `mlflow`, login by password; yields its URI, password included.

    It runs as the user `postgres` where this process is root, which PostgreSQL refuses to be.
    """
    user = SUPERUSER if os.getuid() == 0 else getpass.getuser()
    options: dict[str, Any] = {}
    if os.getuid() == 0:
        options = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="nava-pg-") as temporary:
        folder, secret = Path(temporary), Path(temporary) / "password"
        secret.write_text(password)
        secret.chmod(0o600)
        if options:
            for path in (folder, secret):
                shutil.chown(path, user)
        made = [programs / "initdb", "-D", folder / "data", "-U", "nava", "--pwfile", secret, "--no-sync"]
        _checked([*made, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"], folder, options)
        port = free_port()
        command = [programs / "postgres", "-D", folder / "data", "-k", folder, "-p", port, "-F"]
        command += ["-c", "listen_addresses=127.0.0.1"]
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
        service = Service([str(part) for part in command], port, environment, folder, "", options)
        with running(service):
            _create_database(port, password)
            yield f"postgresql+psycopg://nava:{password}@127.0.0.1:{port}/mlflow"


def _checked(command: Sequence[Any], folder: Path, options: Mapping[str, Any]) -> None:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr


def _create_database(port: int, password: str) -> None:
    import psycopg

    end = time.monotonic() + START_S
    while True:
        try:
            login = {"host": "127.0.0.1", "port": port, "user": "nava", "password": password}
            connection = psycopg.connect(dbname="postgres", autocommit=True, **login)
            break
        except psycopg.OperationalError:  # it answers while it starts, but takes nobody
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
    with connection:
        connection.execute("CREATE DATABASE mlflow")


@contextmanager
def s3_store(folder: Path, key: str, secret: str) -> Iterator[dict[str, str]]:
    """moto's server with the bucket `BUCKET`; yields the environment in which MLflow and boto reach it."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(Service(command, port, clean_environment(), folder, "/moto-api/")) as service:
        import boto3

        login = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=service.url, **login).create_bucket(Bucket=BUCKET)
        yield {
            "MLFLOW_S3_ENDPOINT_URL": service.url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@dataclass(frozen=True)
class Login:
    user: str = "admin"
    password: str = "a-login-of-the-tests"
    database: str = "database-word-1"
    s3_key: str = "s3-key-id"
    s3_secret: str = "s3-secret-word-1"


@dataclass(frozen=True)
class TeamServer:
    """server: MLflow with login; backend: its database, with password; s3: its environment for artifacts."""

    server: Service
    backend: str
    s3: Mapping[str, str]
    login: Login

    def client_environment(self, in_uri: bool = False) -> dict[str, str]:
        """What a team member sets; in_uri: the login is part of the address."""
        if in_uri:
            place = f"{self.login.user}:{self.login.password}@127.0.0.1:{self.server.port}"
            return {"MLFLOW_TRACKING_URI": f"http://{place}"}
        return {
            "MLFLOW_TRACKING_URI": self.server.url,
            "MLFLOW_TRACKING_USERNAME": self.login.user,
            "MLFLOW_TRACKING_PASSWORD": self.login.password,
        }


@contextmanager
def team_server(folder: Path, login: Login | None = None) -> Iterator[TeamServer]:
    """MLflow on PostgreSQL with artifacts in an S3-like store, login on. Skips where a part is missing."""
    programs, login = needs_postgres(), login or Login()
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\n"
    )
    with postgres(programs, login.database) as backend, s3_store(folder, login.s3_key, login.s3_secret) as s3:
        environment = {
            **s3,
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": login.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs-the-cookies-of-the-tests",
        }
        options = {"destination": ARTIFACTS, "app": "basic-auth", "environment": environment}
        with running(mlflow_server(folder, backend, **options)) as server:
            yield TeamServer(server, backend, s3, login)
