"""Bodies as they come in: any chunks, too slow, too large, without room."""

import asyncio
import itertools
import os
import tempfile
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_world import SMALL

from orchestration.service.body import Spool, uploads_folder
from orchestration.service.limits import Refusal
from orchestration.service.multipart import Begin, Data, MultipartParser
from rewards.http import form

FORM = {"content-type": "multipart/form-data; boundary=b"}
START = b'--b\r\nContent-Disposition: form-data; name="video"\r\n\r\n'


class Sent:
    """A request whose chunks come every `pause` seconds."""

    def __init__(self, chunks, headers=FORM, pause=0.0) -> None:
        self.chunks, self.headers, self.pause, self.taken = chunks, headers, pause, 0

    async def stream(self):
        for chunk in self.chunks:
            await asyncio.sleep(self.pause)
            self.taken += 1
            yield chunk


def received(tmp_path, sent, limits=SMALL):
    async def receive():
        spool = Spool(tmp_path, limits)
        try:
            async with spool.receive(sent) as body:
                return body.request, {name: path.read_bytes() for name, path in body.uploads.items()}
        finally:
            assert spool.held == 0 and list(tmp_path.iterdir()) == []

    return asyncio.run(receive())


def parsed(body: bytes, boundary: bytes, cuts: list[int]) -> dict[str, bytes]:
    parser, found, name = MultipartParser(boundary, 8), {}, ""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        for event in parser.feed(body[start:end]):
            if isinstance(event, Begin):
                name = event.name
                found[name] = b""
            elif isinstance(event, Data):
                found[name] += event.content
    parser.finish()
    return found


# Contents full of what delimiters are made of, and the delimiter but for its last letter.
content = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--", b"x", b"\r\n\r\n", b"BOUNDAR"]), max_size=30
).map(b"".join)
named = st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), content, min_size=1, max_size=5)


@given(named, st.lists(st.integers(0, 9999), max_size=40))
def test_parts_come_out_as_they_went_in_however_they_are_cut(parts, cuts):
    pieces = [
        f'--BOUNDARY\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + part
        for name, part in parts.items()
    ]
    assert parsed(b"\r\n".join([*pieces, b"--BOUNDARY--\r\n"]), b"BOUNDARY", cuts) == parts


@given(st.binary(max_size=300), st.lists(st.integers(0, 999), max_size=5))
def test_anything_else_is_refused_and_never_crashes(body, cuts):
    with pytest.raises(Refusal):
        parsed(b"--b\r\n" + body, b"b", cuts)


def test_uploads_are_files_while_they_are_needed(tmp_path):
    content_type, body = form({"request": "{}"}, {"video": b"abc", "audio": b""})
    answer = received(tmp_path, Sent([body[:50], body[50:]], {"content-type": content_type}))
    assert answer == (b"{}", {"video": b"abc", "audio": b""})


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_slow_sender_is_given_up(tmp_path, kind):
    sent = Sent(
        [START, *[b"x"] * 100] if "multi" in kind else [b" "] * 100, {"content-type": kind}, pause=0.05
    )
    with pytest.raises(Refusal, match="not complete after") as refused:
        received(tmp_path, sent, replace(SMALL, body_seconds=0.2))
    assert refused.value.status == 408 and sent.taken < 10


def test_an_endless_body_is_not_read_to_its_end(tmp_path):
    sent = Sent([START, *[b"x" * 65_536] * 1000])
    with pytest.raises(Refusal, match="more than") as refused:
        received(tmp_path, sent)
    assert refused.value.status == 413 and sent.taken <= 2 + SMALL.body_bytes // 65_536


@pytest.mark.parametrize("length", [str(10**9), "-1", "1e3", "9" * 400, ""])
def test_a_length_that_is_too_large_or_none_is_refused_unread(tmp_path, length):
    sent = Sent([b"{}"], {"content-type": "application/json", "content-length": length})
    with pytest.raises(Refusal) as refused:
        received(tmp_path, sent)
    assert refused.value.status == 413 and sent.taken == 0


def test_without_room_for_uploads_one_is_told_to_come_again(tmp_path):
    with pytest.raises(Refusal, match="no room") as refused:
        received(tmp_path, Sent([START, b"x" * 100]), replace(SMALL, spool_bytes=50))
    assert refused.value.status == 503 and refused.value.retry_after_s > 0


def test_one_name_one_part(tmp_path):
    with pytest.raises(Refusal, match="two parts"):
        received(tmp_path, Sent([START + b"x\r\n" + START]))


def test_errors_behind_the_body_are_not_the_senders(tmp_path):
    async def receive():
        async with Spool(tmp_path, SMALL).receive(Sent([b"{}"], {"content-type": "application/json"})):
            raise TimeoutError("of a reward")

    with pytest.raises(TimeoutError, match="of a reward"):
        asyncio.run(receive())


def test_uploads_of_a_killed_service_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone, other = tmp_path / "nava_uploads_999999999_x", tmp_path / f"nava_uploads_{os.getppid()}_x"
    for folder in (gone, other):
        folder.mkdir()
        (folder / "0").write_bytes(b"x")
    with uploads_folder() as mine:
        assert not gone.exists() and other.exists() and mine.is_dir()
    assert list(tmp_path.iterdir()) == [other]
