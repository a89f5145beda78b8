"""Stills: one reader turns them upright, makes them opaque and eight bits deep, or says why it cannot."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CORNERS, cell_colours, ffmpeg, numbered_frame
from PIL import Image

from pretrain.media.errors import MediaError
from pretrain.media.geometry import BACKGROUND
from pretrain.media.stills import read_image

UPRIGHT = numbered_frame(77, 64, 96)
UNDO = {  # EXIF orientation -> what has to be done to the shown picture to get the stored one
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: shown[::-1, ::-1].transpose(1, 0, 2),
    8: lambda shown: np.rot90(shown, -1),
}


def assert_upright(picture: np.ndarray, tolerance: float = 12) -> None:
    assert picture.dtype == np.uint8 and picture.shape == UPRIGHT.shape
    assert np.abs(cell_colours(picture) - cell_colours(UPRIGHT)).max() <= tolerance


@pytest.mark.parametrize("orientation", list(UNDO))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_undone(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    stored = Image.fromarray(np.ascontiguousarray(UNDO[orientation](UPRIGHT)))
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    assert_upright(read_image(tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_none(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", quality=95, exif=exif)
    assert_upright(read_image(tmp_path / "a.jpg"))


def with_alpha(alpha: np.ndarray) -> np.ndarray:
    """[H, W, 4] with magenta hidden where it is transparent."""
    hidden = np.where(alpha[..., None] > 0, UPRIGHT, np.array([255, 0, 255], np.uint8))
    return np.dstack([hidden, alpha])


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_transparent_parts_show_the_background(tmp_path: Path, suffix: str) -> None:
    alpha = np.full(UPRIGHT.shape[:2], 255, np.uint8)
    alpha[:16], alpha[48:] = 0, 128
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(with_alpha(alpha), "RGBA").save(tmp_path / f"a.{suffix}", **options)
    picture = read_image(tmp_path / f"a.{suffix}")
    assert (picture[:15] == BACKGROUND).all() and (picture[17:47] == UPRIGHT[17:47]).all()
    half = (UPRIGHT[49:].astype(float) * 128 + np.array(BACKGROUND) * 127) / 255
    assert np.abs(picture[49:] - half).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_palette_entry_shows_the_background(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(UPRIGHT).quantize(16)
    index = image.getpixel((0, 0))
    image.save(tmp_path / f"a.{suffix}", transparency=index)
    picture = read_image(tmp_path / f"a.{suffix}")
    assert (picture[:10, :8] == BACKGROUND).all()
    assert np.abs(picture[17:47].astype(int) - UPRIGHT[17:47]).max() <= 8


def test_grey_with_alpha_and_one_transparent_colour(tmp_path: Path) -> None:
    grey = np.full((8, 8), 40, np.uint8)
    Image.fromarray(np.dstack([grey, np.zeros_like(grey)]), "LA").save(tmp_path / "la.png")
    assert (read_image(tmp_path / "la.png") == BACKGROUND).all()
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / "t.png", transparency=(9, 9, 9))
    assert (read_image(tmp_path / "t.png") == BACKGROUND).all()


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_become_eight_of_the_same_shade(tmp_path: Path, suffix: str) -> None:
    shades = np.linspace(0, 65_535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(shades).save(tmp_path / f"a.{suffix}")
    picture = read_image(tmp_path / f"a.{suffix}")
    assert np.abs(picture[..., 0] - shades / 257).max() <= 1 and (picture == picture[..., :1]).all()


def test_sixteen_bits_a_colour(tmp_path: Path) -> None:
    raw = UPRIGHT.astype(np.uint16) * 257
    path = tmp_path / "a.png"
    size = f"{UPRIGHT.shape[1]}x{UPRIGHT.shape[0]}"
    given = ("-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", size, "-i", "-")
    ffmpeg(*given, "-frames:v", "1", path, stdin=raw.tobytes())
    assert np.abs(read_image(path).astype(int) - UPRIGHT).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB", "YCbCr", "LAB"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(UPRIGHT)
    if mode != "LAB":
        image = image.convert(mode)
        suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
        options: dict[str, Any] = {"quality": 95} if suffix == "jpg" else {}
        image.save(tmp_path / f"a.{suffix}", **options)
    else:
        suffix = "tiff"
        Image.new("LAB", (96, 64), (200, 128, 128)).save(tmp_path / "a.tiff")
        picture = read_image(tmp_path / "a.tiff")
        assert np.ptp(picture.reshape(-1, 3)[0].astype(int)) < 16  # grey stays grey
        return
    picture = read_image(tmp_path / f"a.{suffix}")
    if mode in ("RGB", "CMYK", "YCbCr", "P"):
        assert_upright(picture, 60 if mode == "P" else 14)
    else:
        assert picture.shape == UPRIGHT.shape and (picture == picture[..., :1]).all()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_a_cut_picture_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(MediaError, match=f"a.{suffix}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    for side in (20_000, 100_000, 2**31 - 1):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
        path = tmp_path / f"{side}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b""))
        with pytest.raises(MediaError, match=f"{side}.png") as caught:
            read_image(path)
        assert str(side) in str(caught.value).replace(f"{side}.png", "")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"GIF89a", bytes(4096)])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.png"):
        read_image(path)


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.jpg")
    assert_upright(read_image(tmp_path / "b.jpg"))


def test_a_missing_picture_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_image(tmp_path / "none.png")


def test_the_corners_are_told_apart() -> None:
    colours = cell_colours(UPRIGHT)
    assert len({tuple(colours[place].round()) for place in CORNERS}) == 4
