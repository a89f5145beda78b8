"""First frames of any size and orientation, brought to the clip's."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pretrain.first_frames import check_first_frames, encode_first_frames, fitted, read_first_frames
from pretrain.generation.config import GenerateConfig
from pretrain.prompt import read_prompts


def halves(height: int, width: int) -> np.ndarray:
    """Black above, white below."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 2 :] = 255
    return picture


def test_each_fit_has_the_size_and_keeps_what_it_says():
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255  # its middle is white
    assert (fitted(wide, 64, 64, "crop") > 200).all()
    padded = fitted(wide, 96, 96, "pad")
    assert not padded[:30].any() and not padded[66:].any() and padded[48, 48, 0] == 255
    stretched = fitted(wide, 64, 96, "stretch")
    np.testing.assert_array_equal(stretched[0], stretched[-1])
    assert stretched[0, 48, 0] == 255 and stretched[0, 5, 0] == 0
    with pytest.raises(ValueError, match="96x32 pixels; resize it to 64x64"):
        fitted(wide, 64, 64, "exact")


@given(height=st.integers(1, 200), width=st.integers(1, 200), fit=st.sampled_from(["crop", "pad", "stretch"]))
def test_any_size_becomes_the_clips(height, width, fit):
    grey = np.full((height, width, 3), 128, np.uint8)
    made = fitted(grey, 64, 32, fit)
    assert made.shape == (64, 32, 3) and (made[31:33, 15:17] == 128).any()
    assert fit == "pad" or (made == 128).all()


@given(fit=st.sampled_from(["crop", "pad", "stretch", "exact"]))
def test_a_picture_of_the_right_size_is_left_as_it_is(fit):
    picture = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    assert fitted(picture, 64, 32, fit) is picture


@pytest.mark.parametrize(("orientation", "dark"), [(1, "top"), (3, "bottom"), (6, "right"), (8, "left")])
def test_a_turned_photo_is_upright_before_it_is_cut(tmp_path, orientation, dark):
    image = Image.fromarray(halves(120, 80))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "A wall.", "image_path": "photo.jpg"}))
    rows, config = read_prompts(tmp_path / "p.jsonl"), GenerateConfig()
    check_first_frames(rows, config, config.fit)
    with pytest.raises(ValueError, match="resize it to 64x64"):
        check_first_frames(rows, config)
    shown = fitted(read_first_frames(rows)[tmp_path / "photo.jpg"][0].numpy(), 64, 64, "crop")
    parts = {"top": shown[:20], "bottom": shown[44:], "left": shown[:, :20], "right": shown[:, 44:]}
    darkest = min(parts, key=lambda name: parts[name].mean())
    assert darkest == dark


def test_a_batch_of_images_of_several_sizes_is_encoded_at_one(tmp_path):
    class Codec:
        def encode(self, frames):
            return frames

    class Codecs:
        video = Codec()

    lines = []
    for number, (height, width) in enumerate([(64, 64), (30, 90)]):
        Image.fromarray(halves(height, width)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"data_id": f"{number}", "prompt": "x", "image_path": f"{number}.png"}))
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    rows = read_prompts(tmp_path / "p.jsonl")
    found = encode_first_frames(rows, read_first_frames(rows), Codecs(), GenerateConfig(), "crop")  # type: ignore[arg-type]
    assert found is not None and found.shape == (2, 1, 64, 64, 3)
