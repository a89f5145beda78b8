"""Weight files: missing, wrong and right ones, told in one line."""

import hashlib

import pytest

from rewards.weights import checked

TERMS = {"what": "some net", "licence": "MIT", "source": "https://example.org/net.pth"}


def test_a_missing_file_names_what_where_and_licence(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"some net: .*net.pth: no such file; get it from https://example.org/net.pth \(MIT\)",
    ) as error:
        checked(tmp_path / "net.pth", **TERMS)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        checked(tmp_path, **TERMS)


def test_another_digest_names_both(tmp_path):
    file = tmp_path / "net.pth"
    file.write_bytes(b"weights")
    right, wrong = hashlib.sha256(b"weights").hexdigest(), "ab" * 32
    with pytest.raises(ValueError, match=f"sha256 is {right}, not {wrong}"):
        checked(file, wrong, **TERMS)
    assert checked(file, right.upper(), **TERMS) == file


def test_digest_and_licence_are_told_once_and_a_changed_file_is_read_again(tmp_path, capsys):
    file = tmp_path / "net.pth"
    file.write_bytes(b"one")
    for _ in range(2):
        checked(file, **TERMS)
    told = capsys.readouterr().err.splitlines()
    assert told == [f"some net: {file}, sha256 {hashlib.sha256(b'one').hexdigest()}, licence MIT"]
    file.write_bytes(b"other")
    checked(file, **TERMS)
    assert hashlib.sha256(b"other").hexdigest() in capsys.readouterr().err
