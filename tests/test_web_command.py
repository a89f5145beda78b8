"""`nava web` before anything is started."""

import sys

import pytest

from experiments.cli import main


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--port", "70000"], "--port 70000: expected 0 to 65535"),
        (["--keep", "0"], "--keep 0: expected GiB"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0: others can reach it, so it needs a password"),
        (["--password-file", "gone"], "--password-file gone: no such file"),
        (["--password-file", "short"], "a password has at least 8 characters"),
        (["--password-file", "empty"], "empty; put the password there"),
        (["--rewards", "nothing"], "unknown reward 'nothing'"),
        (["--set", "wer_pocketsphinx.x=1"], "x"),
        (["localhost:8124"], "is not http"),
        ([], "no such file; `nava serve tokens add web --scopes generate`"),
        (["--token-file", "token"], "`nava web` needs Gradio; pip install 'nava[web]'"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("NAVA_API_TOKEN", "NAVA_WEB_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name, text in {"short": "seven77", "empty": "\n", "token": "t" * 20}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["web", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and found in error and error.count("\n") == 1, error
    assert "seven77" not in error
