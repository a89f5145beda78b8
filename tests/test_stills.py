"""Stills: orientation, transparency, depth and damage, against Pillow's own operations and closed forms."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pretrain.media.errors import MediaError
from pretrain.media.read import probe, read_media
from pretrain.media.stills import read_image


def noise(height: int = 24, width: int = 40) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return small.repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 100} if suffix in ("jpg", "webp") else {}
    Image.fromarray(noise()).save(path, exif=exif, **options)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = read_image(path)
    assert np.array_equal(found, expected)
    assert found.shape[:2] == ((40, 24) if orientation > 4 else (24, 40))
    info = probe(path)
    assert (info.height, info.width) == found.shape[:2]
    frames = read_media(path, want_audio=False).frames
    assert frames is not None and np.array_equal(frames[0], found)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "tRNS"])
def test_what_is_transparent_is_white_whatever_hides_under_it(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[...] = (255, 0, 255, 0)
    rgba[4:12, 4:12] = (10, 10, 10, 255)
    image = Image.fromarray(rgba)
    if mode == "P":
        image.quantize(8).save(path)
    elif mode == "tRNS":
        image.convert("RGB").save(path, transparency=(255, 0, 255))
    else:
        image.convert(mode).save(path)
    found = read_image(path)
    assert (found[0, 0] == 255).all() and np.abs(found[8, 8].astype(int) - 10).max() <= 1
    rgba[0, 0] = (0, 0, 0, 128)
    Image.fromarray(rgba).save(path)
    assert (np.abs(read_image(path)[0, 0].astype(int) - 127) <= 1).all()


def test_depths_and_colour_models(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for suffix in ("png", "tif"):
        Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
        grey = read_image(tmp_path / f"deep.{suffix}")
        assert grey.shape == (16, 16, 3) and np.array_equal(grey[..., 0].ravel(), np.arange(256))
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png")[..., 1].ravel(), np.arange(256))
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert np.abs(read_image(tmp_path / "cmyk.jpg")[0, 0].astype(int) - (255, 0, 0)).max() < 8
    Image.fromarray(np.zeros((16, 16), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(MediaError, match=r"float.tif: 32 bits a pixel"):
        read_image(tmp_path / "float.tif")


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (40, 200)]
    for name in ("a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(tmp_path / name)[0, 0].tolist() == [40, 0, 0]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert abs(int(read_image(tmp_path / "a.gif")[0, 0, 0]) - 40) < 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_half_a_picture_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"half.{suffix}"
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (read_image, lambda path: read_media(path, want_audio=False)):
        with pytest.raises(MediaError, match=rf"half\.{suffix}: corrupt or not") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = (20_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"never read") + chunk(b"IEND", b"")
    )
    (tmp_path / "huge.png").write_bytes(content)
    for read in (read_image, probe):
        with pytest.raises(MediaError, match=r"huge.png: 20000x20000 pixels"):
            read(tmp_path / "huge.png")
