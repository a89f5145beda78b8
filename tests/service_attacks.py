"""Requests that a reward service must refuse, each with the status and a word of the reason it must give."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from rewards.http import form

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Attack:
    """`status` may be one of several where two refusals are right; `pause_s`: seconds between single bytes of
    the body."""

    name: str
    status: tuple[int, ...]
    reason: str
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    token: str | None = None  # the right one where not given
    chunked: bool = False  # no length is told
    pause_s: float = 0.0


def attacks(body_bytes: int, json_bytes: int, body_seconds: float, link_outside: str) -> Iterator[Attack]:
    """`link_outside`: a symlink under an allowed folder to a file outside it."""
    yield Attack("no token", (401,), "token", token="")
    yield Attack("wrong token", (401,), "token", token="0" * 32)
    yield from _of_json(json_bytes, link_outside)
    too_much = b"x" * (body_bytes + 4096)
    kind = {"content-type": "multipart/form-data; boundary=b"}
    start = b'--b\r\nContent-Disposition: form-data; name="video"\r\n\r\n'
    yield Attack("oversized", (413,), "body", too_much, kind)
    yield Attack("oversized, chunked", (413,), "body", start + too_much, kind, chunked=True)
    yield Attack("slow", (408,), "body", b"{" + b" " * 60, pause_s=body_seconds / 10)
    yield Attack("length lies: shorter body", (408,), "body", b"{}", JSON | {"content-length": "1000"})
    yield Attack("cut multipart", (422,), "boundary", start + b"abc", kind)
    yield Attack(
        "multipart without boundary", (415,), "boundary", b"abc", {"content-type": "multipart/form-data"}
    )
    yield Attack(
        "part named as a path",
        (422,),
        "name",
        start.replace(b"video", b"../../x") + b"abc\r\n--b--\r\n",
        kind,
    )
    yield Attack(
        "compressed body",
        (415,),
        "content-encoding",
        gzip.compress(b"{}"),
        JSON | {"content-encoding": "gzip"},
    )
    yield Attack("another type", (415,), "content-type", b"<x/>", {"content-type": "application/xml"})
    for name, status, reason, parts in _of_media():
        files = dict(parts)
        content_type, body = form({"request": files.pop("request", b"{}")}, files)
        yield Attack(name, status, reason, body, {"content-type": content_type})


def _of_json(json_bytes: int, link_outside: str) -> Iterator[Attack]:
    def of(name: str, status: int, reason: str, body: object) -> Attack:
        return Attack(name, (status,), reason, body if isinstance(body, bytes) else json.dumps(body).encode())

    yield of("no JSON", 422, "JSON", b"clip=a.mp4")
    yield of("deep JSON", 422, "recursion", b'{"clip":' + b"[" * 10_000)
    yield of("NaN", 422, "finite", b'{"clip": "a.mp4", "span_times": [[NaN, 1]]}')
    yield of("half a character", 422, "JSON", b'{"clip": "\\ud800"}')
    yield Attack("huge JSON", (413,), "body", b'{"prompt": "' + b"x" * json_bytes + b'"}')
    yield of("unknown key", 422, "did you mean 'prompt'", {"clip": "a.mp4", "promt": "x"})
    yield of("unknown reward", 422, "unknown reward", {"clip": "a.mp4", "rewards": ["no_such_reward"]})
    yield of("nothing to score", 422, "clip: missing", {})
    yield of("open span", 422, "prompt", {"clip": "a.mp4", "prompt": "<S>open"})
    yield of("traversal", 403, "allowed folder", {"clip": "../../../../../../etc/passwd"})
    yield of("encoded traversal", 422, "no such file", {"clip": "%2e%2e/%2e%2e/etc/passwd"})
    yield of("absolute path", 403, "allowed folder", {"clip": "/etc/passwd"})
    yield of("null byte", 403, "allowed folder", {"clip": "a\0.mp4"})
    yield of("URL", 422, "no such file", {"clip": "http://127.0.0.1/a.mp4"})
    yield of("symlink outside", 403, "allowed folder", {"clip": link_outside})
    yield of("a device", 403, "allowed folder", {"clip": "/dev/zero"})


def _of_media() -> Iterator[tuple[str, tuple[int, ...], str, dict[str, bytes]]]:
    good = mp4(6, 32, 32)
    yield (
        "playlist called mp4",
        (415,),
        "first bytes",
        {"video": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n"},
    )
    yield "concat script", (415,), "first bytes", {"video": b"ffconcat version 1.0\nfile /etc/passwd\n"}
    yield (
        "mp4 that begins as one",
        (422,),
        "not a video",
        {"video": good[:32] + b"#EXTM3U\nfile:///etc/passwd\n" * 50},
    )
    yield "cut mp4", (422,), "clip", {"video": good[: len(good) // 2]}
    yield "mp4 bomb: frames", (413,), "at most", {"video": mp4(2100, 16, 16)}
    yield "mp4 bomb: pixels", (413,), "pixels", {"video": mp4(1, 4096, 4096)}
    yield "mp4 bomb: seconds", (413,), "at most", {"video": mp4(200, 16, 16, fps=2)}
    yield "header lies: pixels", (413, 422), "clip", {"video": lying_size(mp4(1, 4096, 4096), 4096, 16)}
    yield "header lies: seconds", (413,), "at most", {"video": lying_durations(mp4(200, 16, 16, fps=2))}
    yield "header lies: wav", (422,), "header tells more", {"audio": _wav_that_lies()}
    yield "wav that is too long", (413,), "at most", {"audio": _wav(bytes(4000 * 61), 4000)}
    yield (
        "png bomb",
        (413,),
        "pixels",
        {"video": good, "f": _png_bomb(), "request": b'{"first_frame": "part:f"}'},
    )
    yield (
        "png that is none",
        (422,),
        "png",
        {"video": good, "f": b"\x89PNG\r\n\x1a\n" + b"x" * 99, "request": b'{"first_frame": "part:f"}'},
    )
    yield "part that nothing names", (422,), "no field names it", {"video": good, "other": b"x"}


def mp4(num_frames: int, height: int, width: int, fps: int = 24) -> bytes:
    """h264 of one grey, a few bytes a frame."""
    with io.BytesIO() as file:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream(
                "libx264", rate=Fraction(fps), options={"preset": "ultrafast", "bf": "0", "threads": "1"}
            )
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            picture = np.full((height, width, 3), 90, np.uint8)
            for _ in range(num_frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        return file.getvalue()


def lying_size(content: bytes, edge: int, told: int) -> bytes:
    """The sample entry and the track's header tell another size than the stream has."""
    entry = struct.pack(">HH", edge, edge)
    assert entry in content
    track = struct.pack(">II", edge << 16, edge << 16)
    return content.replace(entry, struct.pack(">HH", told, told)).replace(
        track, struct.pack(">II", told << 16, told << 16)
    )


def lying_durations(content: bytes) -> bytes:
    """Every header tells a duration of 1 unit (version 0 boxes)."""
    changed = bytearray(content)
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = changed.find(box)
        assert at > 0
        changed[at + offset : at + offset + 4] = struct.pack(">I", 1)
    return bytes(changed)


def _wav(samples: bytes, rate: int, told: int | None = None) -> bytes:
    length = len(samples) if told is None else told
    head = (
        b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8)
        + b"data"
        + struct.pack("<I", length)
    )
    return b"RIFF" + struct.pack("<I", min(2**32 - 1, len(head) + length)) + head + samples


def _wav_that_lies() -> bytes:
    """4 GiB of samples, it says."""
    return _wav(b"\x80" * 100, 16_000, 2**32 - 200)


def _png_bomb() -> bytes:
    """60000 x 60000 pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
        + chunk(b"IEND", b"")
    )


def outside_link(root: Path) -> str:
    """Makes a symlink under `root` to a file outside it; its name."""
    link = root / "outside.mp4"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc/hostname")
    return link.name
