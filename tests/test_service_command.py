"""`nava serve rewards` before anything is started: options, limits, and the line to try it."""

import subprocess

import pytest

from experiments.cli import main
from experiments.serving import config_from, try_line
from orchestration.service.token import token_from

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve, as it is imported
SIZES = {"batch": 8, "replicas": 1, "cpus": 0.0, "gpus": 0.0}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--set", "snr_estimate_db.x=1"], "snr_estimate_db.x: "),
        (["--set", "sync_mini.margin=1"], "--set sync_mini.margin=1: 'sync_mini' is not asked for"),
        (["--set", "snr_estimate_db.x=["], "--set snr_estimate_db.x=[: the value is not YAML"),
        (["--limit", "requests=["], "--limit requests=[: expected NAME=NUMBER"),
        (["--limit", "requests"], "--limit.requests: expected int"),
        (["--limit", "requets=3"], "did you mean 'requests'"),
        (["--limit", "held_bytes=5"], "less than one clip's"),
        (["--rewards", "snr"], "unknown reward 'snr'"),
        (["--root", "/"], "that is every file"),
        (["--root", "gone"], "no such folder"),
        (["--batch", "0"], "--batch: expected at least 1"),
        (["--cpus", "nan"], "--cpus: expected 0 or more"),
        (["--port", "0"], "--port 0"),
        (["--token-file", "gone"], "--token-file gone: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rewards = [] if "--rewards" in arguments else ["--rewards", "snr_estimate_db"]
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "rewards", *rewards, *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and found in error and error.count("\n") == 1


def test_options_limits_and_folders_come_through(tmp_path):
    plug = "rewards.remote:sync_mini"
    settings, limits = [f"{plug}.url=http://h:1", f"{plug}.timeout_s=3"], ["frames=7", "clip_seconds=1.5"]
    config = config_from([plug], settings, limits, [tmp_path], tmp_path, "t" * 20, **SIZES)
    assert config.options[plug] == {"url": "http://h:1", "timeout_s": 3} and config.roots == (
        tmp_path.resolve(),
    )
    assert (config.limits.frames, config.limits.clip_seconds) == (7, 1.5)


def test_the_line_to_try_finds_the_token(tmp_path, monkeypatch):
    """The shell reads the token that the service has, also where the path has spaces."""
    monkeypatch.delenv("NAVA_API_TOKEN", raising=False)
    token, word = token_from(None, tmp_path / "a folder" / "token")
    line = try_line(
        config_from(["snr_estimate_db"], [], [], [], tmp_path, token, **SIZES), "127.0.0.1", 1, word
    )
    command = line.splitlines()[-1].replace("curl", "printf '%s\\n'", 1)
    said = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert f"Authorization: Bearer {token}" in said and said[-1] == "http://127.0.0.1:1/v1/score"
    assert (tmp_path / "a folder" / "token").stat().st_mode & 0o77 == 0
