"""Ray: no start and no joining without its token, private files and folders, ports on the loopback."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from orchestration import launch, ray_security
from orchestration.ray_security import embedded_options, join_securely

with suppress(ImportError):  # before `world` replaces a module of it
    import ray.dashboard.utils
    import ray.job_submission  # noqa: F401

pytestmark = pytest.mark.security
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", ray_security.LOOPBACK_ONLY):
        monkeypatch.setenv(name, "")  # restored at the end, whatever is set meanwhile
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "auth_token"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray._private.ray_constants", type(sys)("constants"))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("told", ["disabled", "Disabled", "none", "k8s", ""])
def test_an_environment_without_authentication_is_refused(monkeypatch, told):
    monkeypatch.setenv("RAY_AUTH_MODE", told)
    for start in (embedded_options, lambda: join_securely("10.0.0.1:6379", is_open=lambda _: False)):
        with pytest.raises(ValueError, match=r"RAY_AUTH_MODE=.*--insecure-ray") as refused:
            start()
        assert "\n" not in str(refused.value)
    embedded_options(insecure=True)


def test_what_an_embedded_ray_leaves_is_private(world):
    options = embedded_options()
    folder = Path(options["_temp_dir"]).parent
    assert mode(folder) == 0o700 and folder.parent == world
    token = world / "ray" / "auth_token"
    assert mode(token) == 0o600 and len(token.read_text()) == 64
    first = token.read_text()
    token.chmod(0o644)  # as Ray itself writes it
    embedded_options()
    assert mode(token) == 0o600 and token.read_text() == first
    token.write_text("")  # of a full disk
    embedded_options()
    assert len(token.read_text()) == 64
    assert os.environ[ray_security.LOOPBACK_ONLY] == "0"


def test_somebody_elses_folder_is_refused(world):
    (world / "elsewhere").mkdir()
    (world / f"nava_{os.getuid()}").symlink_to(world / "elsewhere")
    with pytest.raises(ValueError, match="not a folder of this user"):
        embedded_options()


def test_a_cluster_is_joined_with_a_token_that_it_asks_for(world, monkeypatch):
    with pytest.raises(ValueError, match=r"no token here .*ray get-auth-token --generate"):
        join_securely("10.0.0.1:6379", is_open=lambda _: False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-of-the-cluster")
    with pytest.raises(ValueError, match="answers without a token") as refused:
        join_securely("10.0.0.1:6379", is_open=lambda _: True)
    assert "secret-of" not in str(refused.value)
    join_securely("10.0.0.1:6379", is_open=lambda _: False)
    assert os.environ["RAY_AUTH_MODE"] == "token" and ray_security.LOOPBACK_ONLY not in os.environ
    join_securely("10.0.0.1:6379", insecure=True)
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        join_securely("ray://10.0.0.1:10001")


@contextmanager
def dashboard(status: int) -> Iterator[str]:
    """The address of one that answers so where it is asked for its jobs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/api/jobs/" else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (200, ValueError, "takes jobs without a token"),
        (500, OSError, "answers 500 where it should"),
        (302, OSError, "answers 302 where it should"),
        (401, None, ""),
        (403, None, ""),
    ],
)
def test_a_dashboard_that_takes_jobs_from_anyone_is_refused(status, error, said):
    with dashboard(status) as url:
        if error:
            with pytest.raises(error, match=said):
                ray_security.check_dashboard(url)
        else:
            ray_security.check_dashboard(url)
    with pytest.raises(ConnectionError):
        ray_security.check_dashboard(url)


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
@pytest.mark.parametrize("given", ["auto", "10.0.0.1:6379", "http"])
def test_the_dashboard_that_gets_the_job_is_the_one_that_is_checked(monkeypatch, variable, given):
    utils = pytest.importorskip("ray.dashboard.utils")
    connected: list[str] = []
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", connected.append)
    with dashboard(200) as url:
        monkeypatch.setattr(utils, "get_address_for_submission_client", lambda address: url)
        monkeypatch.setenv(variable, url if given == "http" else given)
        with pytest.raises(ValueError, match=f"^Ray at {url}: it takes jobs without a token") as refused:
            launch.connect()
        assert not connected and "\n" not in str(refused.value)
        assert launch.connect(insecure=True).address == url and connected == [url]
    with dashboard(401) as url:
        monkeypatch.setattr(utils, "get_address_for_submission_client", lambda address: url)
        monkeypatch.setenv(variable, url if given == "http" else given)
        assert launch.connect().address == url and connected[1:] == [url]


@pytest.mark.parametrize("given", ["ray://127.0.0.1:10001", "json://127.0.0.1"])
def test_an_address_that_only_connecting_resolves_is_refused(monkeypatch, given):
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("connected before it was checked"))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(ValueError, match=f"^{given}: not the address of a dashboard.*--address http"):
        launch.connect()


def test_a_cluster_that_does_not_answer_is_not_joined(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-of-the-cluster")
    with pytest.raises(OSError, match=r"^Ray at 127\.0\.0\.1:1: cannot be reached \(UNAVAILABLE\)"):
        join_securely("127.0.0.1:1")


EMBEDDED = """
import sys
sys.path.insert(0, {root!r})
from orchestration.ray_security import embedded_options
options = embedded_options(temporary={folder!r})
import os, psutil, ray, stat
os.umask(0o022)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=80 * 2**20, **options)
me = psutil.Process()
open_ports = {{
    (found.laddr.ip, process.name())
    for process in [me, *me.children(recursive=True)]
    for found in process.net_connections("inet")
    if found.status == "LISTEN" and found.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
}}
print("OPEN", sorted(open_ports))
print("MODE", os.environ["RAY_AUTH_MODE"])
from orchestration.ray_security import answers_without_token
print("ANSWERS", answers_without_token(ray.get_runtime_context().gcs_address))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("authentication", [True, False])
def test_an_embedded_ray_listens_on_the_loopback_and_asks_for_its_token(authentication):
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        program = EMBEDDED.format(root=str(ROOT), folder=folder)
        environment = dict(os.environ)
        if not authentication:
            program = program.replace("embedded_options(", "embedded_options(True, ")
            environment["RAY_AUTH_MODE"] = "disabled"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "OPEN []" in done.stdout
        assert f"ANSWERS {not authentication}" in done.stdout
        inside = Path(folder) / f"nava_{os.getuid()}"
        assert mode(inside) == 0o700
