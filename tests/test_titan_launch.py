"""The launcher with a real torchrun, as a user meets it."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from titan_world import config, write_latents

from pretrain.launch.launch import pretrain_stage
from pretrain.launch.torchrun import check_port
from pretrain.progress import MetricsTail, StageProgress

USER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from titan_world import config
from pretrain.launch.launch import pretrain_stage
made = config(steps={steps}, interval=1000)
print(pretrain_stage(made, "stage1", Path({latents!r}), Path({out!r}), nproc=2).status)
"""


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


def test_busy_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} .*choose another"):
            check_port(port)


def test_unknown_stage_flavor_and_ranks_fail_before_anything_starts(latents, tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'stage9'"):
        pretrain_stage(config(), "stage9", latents, tmp_path / "run")
    with pytest.raises(ValueError, match="unknown model flavor 'minni'; did you mean 'mini'"):
        pretrain_stage(config(flavor="minni"), "stage1", latents, tmp_path / "run")
    with pytest.raises(ValueError, match="does not split over 3 data-parallel ranks"):
        pretrain_stage(config(), "stage1", latents, tmp_path / "run", nproc=3)
    with pytest.raises(FileNotFoundError, match="audio_only"):
        pretrain_stage(config(), "stage1", tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_torchrun_is_interrupted_by_sigterm_and_finishes_when_run_again(latents, tmp_path):
    out = tmp_path / "run"
    code = USER.format(tests=str(Path(__file__).parent), steps=100_000, latents=str(latents), out=str(out))
    pipe = subprocess.PIPE
    user = subprocess.Popen(
        [sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parents[1]
    )
    tail, seen = MetricsTail(out / "metrics.jsonl"), []
    deadline = time.monotonic() + 100
    while not seen and user.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
        seen += list(tail.rows())
    user.send_signal(signal.SIGTERM)
    printed, complained = user.communicate(timeout=60)
    assert user.returncode == 0, complained
    assert printed.strip() == "interrupted"
    assert "stage1: starting, step 0/100000" in complained
    state = json.loads((out / "state.json").read_text())
    assert (out / "checkpoint" / f"step-{state['step']}" / ".metadata").is_file()


def test_progress_speaks_in_lines_where_there_is_no_terminal(capsys):
    row = {
        "task": "T2AV",
        "loss_video": 1.0,
        "loss_audio": 0.5,
        "tokens_per_s": 1234.0,
        "seconds_per_step": 0.5,
        "skipped_nonfinite": 0,
        "skipped_spikes": 1,
    }
    with StageProgress("stage1", 100) as progress:
        for step in range(1, 101):
            progress.show({"step": step, **row})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12
    assert "stage1: step 50/100 T2AV video 1.000, audio 0.500, 1,234 tokens/s, 1 skipped, 25 s left" in lines


def test_tail_gives_whole_rows_once_and_survives_truncation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert list(tail.rows()) == []
    path.write_text('{"step": 1}\n{"st')
    assert list(tail.rows()) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert list(tail.rows()) == [{"step": 2}]
    path.write_text('{"step": 9}\n')
    assert list(tail.rows()) == [{"step": 9}]
