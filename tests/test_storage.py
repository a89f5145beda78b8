"""Places, whole files and one-line errors, on the local disk and in fsspec's memory store."""

import contextlib
import errno
import hashlib
from pathlib import Path
from unittest import mock

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import storage
from pretrain.storage_errors import named_errors, without_secrets

OLD, NEW = b"old content", b"new content, which is longer"


class Faults:
    """The n-th call of any wrapped operation fails, before it acts or after."""

    def __init__(self, nth: int, after: bool) -> None:
        self.left, self.after, self.struck = nth, after, False

    def wrap(self, operation):
        def called(*args, **kwargs):
            self.left -= 1
            strikes = self.left == 0
            if strikes and not self.after:
                self.struck = True
                raise OSError(errno.EIO, "injected")
            result = operation(*args, **kwargs)
            if strikes:
                self.struck = True
                raise OSError(errno.EIO, "injected")
            return result

        return called


def faulty(faults: Faults) -> contextlib.ExitStack:
    """Every step of a write into the memory store and into a folder goes through `faults`."""
    stack = contextlib.ExitStack()
    memory = [(MemoryFileSystem, name) for name in ("put_file", "_open", "cp_file", "mv", "makedirs")]
    for owner, name in [
        *memory,
        (MemoryFile, "write"),
        (Path, "replace"),
        (Path, "write_bytes"),
        (Path, "mkdir"),
    ]:
        stack.enter_context(mock.patch.object(owner, name, faults.wrap(getattr(owner, name))))
    stack.enter_context(mock.patch.object(MemoryFileSystem, "blocksize", 5))
    return stack


@given(
    nth=st.integers(1, 25), after=st.booleans(), existed=st.booleans(), remote=st.booleans(), data=st.data()
)
@settings(max_examples=150, deadline=None)
def test_a_failure_at_any_point_leaves_the_old_or_the_new(
    tmp_path_factory, nth, after, existed, remote, data
):
    folder = storage.place("memory://bucket/run") if remote else tmp_path_factory.mktemp("run")
    storage.remove_folder(folder)
    path = folder / "weights.bin"
    if existed:
        with storage.writing(path) as temporary:
            temporary.write_bytes(OLD)
    faults = Faults(nth, after)
    failed = False
    with faulty(faults):
        try:
            with storage.writing(path) as temporary:
                temporary.write_bytes(NEW)
                if data.draw(st.booleans(), "the body fails"):
                    raise RuntimeError("body")
        except (OSError, RuntimeError) as error:
            failed = True
            assert "\n" not in str(error)
    found = path.read_bytes() if storage.is_file(path) else None
    assert found in ((NEW, OLD if existed else None) if failed else (NEW,))
    if not faults.struck and failed:
        assert found == (OLD if existed else None)
    if not faults.struck:
        assert storage.list_folder(folder) == ([path] if existed or not failed else [])


def test_text_becomes_a_path_or_a_url(tmp_path):
    assert storage.place(str(tmp_path)) == tmp_path and storage.place(tmp_path) == tmp_path
    assert storage.place(tmp_path.as_uri()) == tmp_path
    assert not storage.is_remote(tmp_path) and storage.is_remote(storage.place("memory://a/b"))
    url = storage.place("s3://bucket/run/")
    assert [str(item) for item in (url, url / "x", url.parent)] == [
        "s3://bucket/run",
        "s3://bucket/run/x",
        "s3://bucket/",
    ]
    assert str(storage.place(Path("s3://bucket/run"))) == "s3://bucket/run"  # pathlib has eaten a slash
    assert str(storage.place(url)) == str(url) and storage.place("C:/data") == Path("C:/data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s4://bucket/x", "unknown protocol 's4'; did you mean 's3'"),
        ("s3://", "names no bucket"),
        ("s3://user:hidden@bucket/x", "credentials do not belong in a URL"),
        ("hf://user:hidden@x/y", "credentials do not belong in a URL"),
        ("simplecache::s3://user:hidden@bucket/x", "simplecache::...: chained URLs are not taken"),
        ("zip://x::s3://user:hidden@bucket", "chained URLs are not taken"),
        ("s3:///x", "names no bucket"),
    ],
)
def test_unusable_urls_are_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        storage.place(text)
    assert "\n" not in str(caught.value) and "hidden" not in str(caught.value)


def test_a_missing_driver_names_the_package():
    with (
        mock.patch("fsspec.get_filesystem_class", side_effect=ImportError("no")),
        pytest.raises(ValueError, match="pip install s3fs"),
    ):
        storage.place("s3://bucket/x")


def test_a_download_is_checked_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("NAVA_CACHE", str(tmp_path / "cache"))
    path = storage.place("memory://bucket/download/a.bin")
    with storage.writing(path) as temporary:
        temporary.write_bytes(NEW)
    with storage.local_file(path, hashlib.sha256(NEW).hexdigest()) as local:
        assert (
            local.read_bytes() == NEW and local.is_relative_to(tmp_path / "cache") and local.name == "a.bin"
        )
    assert list((tmp_path / "cache").iterdir()) == []
    for wrong in (path, tmp_path / "a.bin"):
        if not storage.is_remote(wrong):
            wrong.write_bytes(NEW)
        with (
            pytest.raises(ValueError, match=r"sha256 is .*expected 0000"),
            storage.local_file(wrong, "0" * 64),
        ):
            pass
    with (
        pytest.raises(FileNotFoundError, match="memory://bucket/download/none: not found"),
        storage.local_file(path.with_name("none")),
    ):
        pass


def test_a_stream_that_fails_leaves_nothing_in_a_store():
    path = storage.place("memory://bucket/stream/a.bin")
    with pytest.raises(RuntimeError), storage.uploading(path) as stream:
        stream.write(NEW)
        raise RuntimeError("body")
    with storage.uploading(path.with_name("b.bin")) as stream:
        stream.write(NEW)
    with storage.reading(path.with_name("b.bin")) as stream:
        stream.seek(4)
        assert stream.read(7) == NEW[4:11]


def test_folders_are_listed_and_removed(tmp_path):
    for folder in (tmp_path / "set", storage.place("memory://bucket/set")):
        assert storage.list_folder(folder) == []
        for name in ("b", "a", "below/c"):
            with storage.writing(folder / name) as temporary:
                temporary.write_text(name)
        assert [path.name for path in storage.list_folder(folder)] == ["a", "b", "below"]
        assert (
            storage.is_file(folder / "a")
            and not storage.is_file(folder / "below")
            and not storage.is_file(folder / "none")
        )
        storage.move_file(folder / "a", folder / "b")
        storage.remove_file(folder / "none")
        assert (folder / "b").read_text() == "a" and not storage.is_file(folder / "a")
        storage.remove_folder(folder)
        storage.remove_folder(folder)
        assert storage.list_folder(folder) == []


def test_secrets_are_struck_out(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-hidden")
    monkeypatch.setitem(
        __import__("fsspec").config.conf, "s3", {"secret": "other-hidden", "endpoint_url": "http://a"}
    )
    assert without_secrets("x very-hidden\n y other-hidden http://a") == "x *** y *** http://a"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            FileNotFoundError("The specified bucket does not exist"),
            FileNotFoundError,
            "the bucket does not exist; create it",
        ),
        (PermissionError("Access Denied"), PermissionError, "the store forbids it .*give credentials"),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
            ConnectionError,
            "the store does not answer",
        ),
        (TimeoutError("slow"), ConnectionError, "the store does not answer"),
        (OSError(errno.EIO, "very\nlong"), OSError, "the store failed"),
    ],
)
def test_a_stores_errors_become_one_line(error, kind, message):
    with pytest.raises(kind, match=f"^s3://b/x: {message}") as caught, named_errors("s3://b/x"):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_pass_as_they_are():
    with pytest.raises(KeyError), named_errors("s3://b/x"):
        raise KeyError("ours")


@pytest.mark.parametrize("place", ["memory://bucket/claims", ""])
def test_what_was_created_first_stays(tmp_path, place):
    path = storage.place(place or str(tmp_path)) / "deep" / "claim.json"
    storage.create(path, "first")
    storage.create(path, "second")
    assert path.read_text() == "first"
    assert [found.name for found in storage.list_folder(path.parent)] == ["claim.json"]


def test_of_two_processes_at_once_one_creates(tmp_path):
    """The other comes between this one's look and its write."""
    path, link = tmp_path / "claim.json", storage.os.link

    def other_first(source, target):
        path.write_text("other")
        link(source, target)

    with mock.patch.object(storage.os, "link", other_first):
        storage.create(path, "own")
    assert path.read_text() == "other" and list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_links_takes_a_claim_too(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.os, "link", mock.Mock(side_effect=PermissionError(1, "not permitted")))
    storage.create(tmp_path / "claim.json", "first")
    assert (tmp_path / "claim.json").read_text() == "first"
