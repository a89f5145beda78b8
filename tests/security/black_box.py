"""Attacks through the command line alone, so that the code of any commit can be attacked.

`python tests/security/black_box.py [--tree FOLDER]` prints one line for each attack, `held` or `FAILED` with
what happened; exit code 1 if one failed. `git worktree add --detach /tmp/before 164c0b3` is the code before
these attacks were mended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cret-Passw0rd"
PATIENCE_S = 300.0


class Attacked:
    """The command line of one tree, run in a folder of its own."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree, self.folder = tree, folder

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("NAVA_", "MLFLOW_"))
        }
        return {**kept, "PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1", **more}

    def nava(self, *arguments: str, **more: str) -> str:
        """Output and errors of a command, whatever its exit code."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "experiments.cli", *arguments],
            cwd=self.folder,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
        )
        return done.stdout.decode("utf-8", "replace")


def sound(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))
    soundfile.write(path, noise.astype(np.float32), 16_000)
    return path


def rubric_runs_code(attacked: Attacked) -> str:
    """An item of a rubric that names `subprocess:Popen`."""
    sound(attacked.folder / "clips" / "a.wav")
    mark = attacked.folder / "ran"
    name, options = "subprocess:Popen", {"args": ["touch", str(mark)]}
    path = attacked.folder / "rubric.yaml"
    path.write_text(json.dumps({"items": {name: {"weight": 1.0}}, "options": {name: options}}))
    attacked.nava("score", "clips", "--rubric", str(path), "--out", "scores.jsonl")
    time.sleep(0.5)
    return "code of the rubric ran" if mark.exists() else ""


def output_deletes_a_folder(attacked: Attacked) -> str:
    """`generate --to nope/../userdata`, and a folder that happens to hold an index.jsonl."""
    world = attacked.folder / "world"
    made = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("black_box_world.py")), str(world)]
    subprocess.run(
        made, check=True, env=attacked.environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"), timeout=PATIENCE_S
    )
    users = []
    for name, to in (("userdata", "nope/../userdata"), ("indexed", "indexed")):
        users.append(attacked.folder / name / "thesis.txt")
        users[-1].parent.mkdir()
        users[-1].write_text("of years")
        if name == "indexed":
            (attacked.folder / name / "index.jsonl").write_text("{}\n")
        inputs = ("--model", str(world / "model"), "--codec", str(world / "codec"))
        steps = ("--set", "generate.sampler.steps=2")
        attacked.nava("generate", str(world / "prompts.jsonl"), *inputs, "--to", to, *steps)
    lost = [str(path.relative_to(attacked.folder)) for path in users if not path.exists()]
    return f"deleted {', '.join(lost)}" if lost else ""


def playlist_reads_files(attacked: Attacked) -> str:
    """A playlist that is called like a clip and names another file of the machine."""
    private = sound(attacked.folder / "private" / "diary.wav", 2.0)
    clips = attacked.folder / "lists"
    clips.mkdir()
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", str(private), "#EXT-X-ENDLIST"]
    (clips / "a.mp4").write_text("\n".join(lines) + "\n")
    (clips / "b.mp4").write_text(f"ffconcat version 1.0\nfile '{private}'\n")
    attacked.nava("score", "lists", "--rewards", "snr_estimate_db", "--out", "lists.jsonl")
    path = attacked.folder / "lists.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    scores = [score for row in rows for score in row.get("scores", {}).values()]
    read = [score for score in scores if isinstance(score["value"], float)]
    return f"{len(read)} of 2 playlists were played" if read else ""


def vote_loses_its_line(attacked: Attacked) -> str:
    """A vote with a number of ten thousand digits: a refusal has one line that says where."""
    path = attacked.folder / "votes.jsonl"
    path.write_text('{"case": ' + "9" * 10_000 + "}\n")
    said = attacked.nava("gsb", "stats", str(path))
    if "Traceback" in said:
        return "a traceback"
    return "" if "votes.jsonl:1" in said and len(said) < 1_000 else f"said {said[:100]!r}"


def escape_codes_reach_the_terminal(attacked: Attacked) -> str:
    """A clip whose name clears the screen and sets the window's title."""
    folder = attacked.folder / "named"
    folder.mkdir()
    (folder / "\x1b[2J\x1b]0;owned\x07.wav").write_bytes(b"")
    said = attacked.nava("score", "named", "--rewards", "snr_estimate_db", "--out", "named.jsonl")
    return "raw escape codes were printed" if "\x1b[2J" in said or "\x1b]0;" in said else ""


def password_is_written(attacked: Attacked) -> str:
    """A login in MLFLOW_TRACKING_URI, of a server that is not there."""
    sound(attacked.folder / "secret" / "a.wav")
    uri = f"http://team:{SECRET}@127.0.0.1:9"
    more = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
    }
    said = attacked.nava("score", "secret", "--rewards", "snr_estimate_db", "--out", "secret.jsonl", **more)
    time.sleep(15)  # a sender may still try
    found = ["output"] if SECRET in said else []
    for path in attacked.folder.rglob("*"):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            found.append(str(path.relative_to(attacked.folder)))
    return f"the password is in {', '.join(found)}" if found else ""


def long_header_freezes_the_service(attacked: Attacked) -> str:
    """64 MiB of one header value without a token: not read, and health answers within 5 s."""
    with served(attacked) as port, socket.create_connection(("127.0.0.1", port), 5.0) as sock:
        sock.settimeout(20.0)
        taken = 0
        with contextlib.suppress(OSError):
            sock.sendall(b"POST /v1/score HTTP/1.1\r\nx: ")
            for _ in range(1024):
                sock.sendall(b"y" * 65_536)
                taken += 65_536
        healthy = _health_s(port)
        if healthy > 5.0:
            return f"health took {healthy:.0f} s after {taken >> 20} MiB of a header"
        return f"{taken >> 20} MiB of a header were read" if taken >= 64 << 20 else ""


def idle_connections_are_kept(attacked: Attacked) -> str:
    """A connection that has sent half a head is closed within 30 s."""
    with served(attacked) as port, socket.create_connection(("127.0.0.1", port), 5.0) as sock:
        sock.sendall(b"POST /v1/score HTTP/1.1\r\nx: ")
        sock.settimeout(30.0)
        try:
            while sock.recv(4096):
                pass
        except TimeoutError:
            return "still open after 30 s"
        except OSError:
            pass
        return ""


def ray_without_a_token(attacked: Attacked) -> str:
    """RAY_AUTH_MODE=disabled in the environment is refused, not inherited."""
    with served(attacked, RAY_AUTH_MODE="disabled") as port:
        return "served on a Ray without a token" if port else ""


def empty_token_file_is_kept(attacked: Attacked) -> str:
    """What a full disk left where the service keeps its token does not keep it from starting."""
    place = attacked.folder / "out" / "service" / "token"
    place.parent.mkdir(parents=True)
    place.touch()
    with served(attacked, token="") as port:
        return "" if port else "does not start"


def foreign_state_runs_code(attacked: Attacked) -> str:
    """The metadata of a checkpoint (DCP) that runs a command when it is unpickled."""
    mark, folder = attacked.folder / "unpickled", attacked.folder / "step-1"
    folder.mkdir()

    class Run:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    (folder / ".metadata").write_bytes(pickle.dumps(Run()))
    script = (
        "import torch, sys\n"
        "from pathlib import Path\n"
        "import torch.distributed.checkpoint as dcp\n"
        "try:\n"
        "    from pretrain.titan.safe_dcp import SafeReader, load_states\n"
        "    load = lambda state, folder: load_states(state, SafeReader(folder))\n"
        "except ImportError:\n"
        "    load = lambda state, folder: dcp.load(state, checkpoint_id=str(folder))\n"
        f"load({{'x': torch.zeros(1)}}, Path({str(folder)!r}))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    subprocess.run(
        command, cwd=attacked.folder, env=attacked.environment(), capture_output=True, timeout=PATIENCE_S
    )
    return "the pickle ran" if mark.exists() else ""


ATTACKS: tuple[Callable[[Attacked], str], ...] = (
    rubric_runs_code,
    output_deletes_a_folder,
    playlist_reads_files,
    vote_loses_its_line,
    escape_codes_reach_the_terminal,
    password_is_written,
    foreign_state_runs_code,
    empty_token_file_is_kept,
    ray_without_a_token,
    long_header_freezes_the_service,
    idle_connections_are_kept,
)


@contextlib.contextmanager
def served(attacked: Attacked, token: str = "token", **more: str) -> Iterator[int]:
    """The port of `nava serve rewards`, 0 where it does not start."""
    if token == "token":
        (attacked.folder / token).write_text("a-token-of-the-tests-0123456789")
        (attacked.folder / token).chmod(0o600)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    ray = tempfile.mkdtemp(prefix="r", dir="/tmp")
    arguments = [
        "serve",
        "rewards",
        "--port",
        str(port),
        "--rewards",
        "snr_estimate_db",
        *(["--token-file", token] if token else []),
    ]
    with (attacked.folder / "serve.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "experiments.cli", *arguments],
            cwd=attacked.folder,
            env=attacked.environment(RAY_TMPDIR=ray, **more),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < end and _health_s(port, 1.0) > 60:
            time.sleep(0.5)
        yield port if process.poll() is None else 0
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _health_s(port: int, timeout: float = 60.0) -> float:
    """Seconds until the service says that it is well, infinite where it does not in time."""
    started = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as sock:
            sock.settimeout(timeout)
            sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return time.monotonic() - started if b" 200" in sock.recv(4096)[:16] else float("inf")
    except OSError:
        return float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=ROOT, help="whose code is attacked")
    parser.add_argument("--only", nargs="*", default=[], help="names of attacks")
    options = parser.parse_args()
    failed = 0
    for attack in ATTACKS:
        if options.only and attack.__name__ not in options.only:
            continue
        with tempfile.TemporaryDirectory(prefix="attacked-", ignore_cleanup_errors=True) as folder:
            try:
                found = attack(Attacked(options.tree.resolve(), Path(folder)))
            except (OSError, subprocess.SubprocessError) as error:
                found = f"not tried: {error!r}"
        failed += bool(found)
        print(
            f"{'FAILED' if found else 'held  '} {attack.__name__}{': ' if found else ''}{found}", flush=True
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
