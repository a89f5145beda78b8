"""One process where a launcher's variables are in the shell; permissions of written files."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.files import save_tensors
from pretrain.launch.alone import RANK_VARIABLES, one_process
from pretrain.launch.torchrun import run_ranks

CLUSTER = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29533",
}


def test_variables_are_gone_inside_and_back_afterwards(monkeypatch, caplog):
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)
    with one_process("tuning"):
        assert not set(RANK_VARIABLES) & set(os.environ)
    assert "RANK" in caplog.text and "tuning is one process" in caplog.text
    assert all(os.environ[name] == value for name, value in CLUSTER.items())


def test_ranks_of_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun started 2 ranks"), one_process("tuning"):
        pass


def test_accelerate_sees_one_process_in_a_cluster_shell():
    script = """
from pretrain.launch.alone import one_process
with one_process("tuning"):
    from accelerate import PartialState
    print(PartialState(cpu=True).num_processes)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | CLUSTER, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_tensors_get_the_permissions_of_any_new_file(tmp_path: Path, mask, mode):
    before = os.umask(mask)
    try:
        save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_ranks_are_started_without_a_launchers_variables(monkeypatch, tmp_path):
    seen = {}

    class Ended:
        def __init__(self, command, env, **_):
            seen.update(env)

        def wait(self, timeout):
            return 0

        def poll(self):
            return 0

    monkeypatch.setattr("pretrain.launch.torchrun.subprocess.Popen", Ended)
    for name, value in {**CLUSTER, "NODE_RANK": "3", "PET_NNODES": "4", "OTHER": "kept"}.items():
        monkeypatch.setenv(name, value)
    assert run_ranks("module", tmp_path, 1, 0, None) == 0
    assert not {*CLUSTER, "NODE_RANK", "PET_NNODES"} & set(seen) and seen["OTHER"] == "kept"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match="torchrun started 4 of these"):
        run_ranks("module", tmp_path, 1, 0, None)


@pytest.mark.parametrize(
    ("said", "ends", "starts"), [("EADDRINUSE", [1, 0], 2), ("EADDRINUSE", [1] * 9, 5), ("", [1], 1)]
)
def test_ranks_whose_port_was_taken_meanwhile_start_again(monkeypatch, tmp_path, said, ends, starts):
    codes = iter(ends)

    class Ended:
        def __init__(self, *_, stdout, **__):
            self.code = next(codes)
            stdout.write(said if self.code else "")
            stdout.flush()

        def wait(self, timeout):
            return self.code

        def poll(self):
            return self.code

    monkeypatch.setattr("pretrain.launch.torchrun.subprocess.Popen", Ended)
    assert run_ranks("module", tmp_path, 2, 0, None) == ends[starts - 1]
    assert (tmp_path / "log.txt").read_text().count("torchrun starts") == starts
