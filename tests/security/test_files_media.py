"""A media file is read alone: no playlist, script or link in it leads to another file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from canary import unchanged
from PIL import Image

from pretrain.media.errors import MediaError
from pretrain.media.read import probe, read_media, read_metadata
from pretrain.media.stills import read_image
from pretrain.media.write import write_mp4, write_wav

pytestmark = pytest.mark.security


@pytest.fixture
def secret(tmp_path):
    """A clip that no other file may show."""
    path = tmp_path / "private" / "secret.mp4"
    path.parent.mkdir()
    frames = np.full((9, 32, 32, 3), 200, np.uint8)
    write_mp4(path, frames, 24.0, np.zeros(6000, np.float32), 16_000, {})
    write_wav(path.with_suffix(".wav"), np.full(6000, 0.5, np.float32), 16_000)
    return path


def playlists(secret: Path) -> dict[str, str]:
    concat = f"ffconcat version 1.0\nfile '{secret}'\n"
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.4,\n{secret}\n#EXT-X-ENDLIST\n"
    return {
        "a.m3u8": hls,
        "hls.mp4": hls,
        "hls_file.ts": hls.replace(str(secret), f"file:{secret}"),
        "hls_concat.m3u8": hls.replace(str(secret), f"concat:{secret}|{secret}"),
        "hls_crypto.m3u8": hls.replace(str(secret), f"crypto:{secret}"),
        "hls_relative.m3u8": hls.replace(str(secret), "../private/secret.mp4"),
        "a.ffconcat": concat,
        "concat.mp4": concat,
        "concat_subfile.mkv": concat.replace(str(secret), f"subfile,,start,0,end,0,,:{secret}"),
        "concat_lavfi.mp4": concat.replace(f"'{secret}'", f"'movie={secret}'"),
        "a.mpd": f'<?xml version="1.0"?><MPD><BaseURL>{secret}</BaseURL></MPD>',
        "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "a.asx": f'<asx><entry><ref href="{secret}"/></entry></asx>',
        "a.wav": concat,
        "a.gif": hls,
    }


@pytest.mark.parametrize("name", list(playlists(Path("x"))))
def test_playlists_and_scripts_are_refused(tmp_path, secret, name):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_text(playlists(secret)[name])
    with unchanged(tmp_path):
        for read in (
            lambda: read_media(path, want_video=None, want_audio=None),
            lambda: probe(path),
            lambda: read_metadata(path),
            lambda: read_image(path),
        ):
            with pytest.raises(MediaError) as error:
                read()
            assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "concat:{0}",
        "subfile,,start,0,end,0,,:{0}",
        "data:text,x",
        "file:{0}",
        "pipe:0",
        "http://localhost:9/x",
        "-",
    ],
)
def test_a_name_is_never_a_protocol(tmp_path, secret, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MediaError, match="no such file"):
        read_media(name.format(secret))


def test_a_file_whose_name_is_a_protocol_is_read_as_the_file_it_is(tmp_path, secret, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.link(secret, tmp_path / "concat:x|y.mp4")
    assert read_media("concat:x|y.mp4").frames is not None


def external(path: Path, secret: Path) -> None:
    """Make a mov of `secret` whose data reference (dref) names that file."""
    content = secret.read_bytes()
    at = content.index(b"dref")
    url = content.index(b"url ", at)
    alias = b"alis" + struct.pack(">I", 0) + str(secret).encode()
    path.write_bytes(content[:url] + alias[:8] + content[url + 8 :])


def test_references_of_a_mov_to_other_files_are_not_followed(tmp_path, secret):
    path = tmp_path / "alias.mov"
    external(path, secret)
    with unchanged(tmp_path):
        try:
            read_media(path)
        except MediaError as error:
            assert "alias.mov" in str(error)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "XBM", "IM", "DDS"])
def test_stills_of_other_formats_are_refused(tmp_path, kind):
    path = tmp_path / "first.png"
    try:
        mode = {"XBM": "1"}.get(kind, "RGB")
        Image.new(mode, (64, 64)).save(path, kind)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"this Pillow does not write {kind}")
    with pytest.raises(MediaError):
        read_image(path)


def test_a_still_beyond_the_limit_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (8, 8)).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(MediaError, match="60000x60000 pixels"):
        read_image(path)
