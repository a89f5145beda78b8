"""Audiobox on a small random instance of the package's own class: loading, windows, weights, what cannot be
scored."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from rewards.quality.audiobox import WINDOW, AudioboxAesthetics, windows
from rewards.types import Clip

pytest.importorskip("audiobox_aesthetics", reason="pip install --no-deps audiobox_aesthetics")

RATE = 16_000
TRANSFORM = {axis: {"mean": 5.0 + i, "std": 1.0 + 0.5 * i} for i, axis in enumerate(("CE", "CU", "PC", "PQ"))}
CONFIG = {
    "proj_num_layer": 2,
    "proj_ln": True,
    "proj_act_fn": "gelu",
    "proj_dropout": 0,
    "nth_layer": 3,
    "use_weighted_layer_sum": True,
    "precision": "32",
    "normalize_embed": True,
    "output_dim": 1,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The published layout of file and class with 2 layers of width 16; the class takes its sizes from a
    module-wide config."""
    from audiobox_aesthetics.model import aes  # pyright: ignore[reportMissingImports]

    published = aes.DEFAULT_AUDIO_CFG
    small = {
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "conv_pos_groups": 4,
    }
    convolutions = {"conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2"}
    aes.DEFAULT_AUDIO_CFG = aes.WavLMConfig({**published.__dict__, **small, **convolutions})
    torch.manual_seed(0)
    model = aes.AesMultiOutput(**CONFIG, target_transform=TRANSFORM)
    file = tmp_path_factory.mktemp("audiobox") / "checkpoint.pt"
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save(
        {"state_dict": state, "model_cfg": {**CONFIG, "audio_cfg": "unused"}, "target_transform": TRANSFORM},
        file,
    )
    yield file
    aes.DEFAULT_AUDIO_CFG = published


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return AudioboxAesthetics.load(checkpoint)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def test_the_published_class_is_loaded_without_torchaudio(scorer):
    assert type(scorer._model).__name__ == "AesMultiOutput"
    assert "torchaudio" not in sys.modules and "audiobox_aesthetics.infer" not in sys.modules


def test_a_long_clip_is_the_mean_of_its_windows_weighted_by_their_sound(scorer):
    sound = noise(12.5)
    whole, first, rest = scorer.score([Clip(part, RATE) for part in (sound, sound[:WINDOW], sound[WINDOW:])])
    assert whole.value == pytest.approx((first.value + 0.25 * rest.value) / 1.25, abs=1e-5)
    assert whole.parts["pc"] == pytest.approx((first.parts["pc"] + 0.25 * rest.parts["pc"]) / 1.25, abs=1e-5)
    assert set(whole.parts) == {"ce", "cu", "pc"}


def test_values_are_the_models_own_under_the_target_transform(scorer):
    sound = noise(3.0)
    batch = torch.zeros(1, 1, WINDOW)
    batch[0, 0, : len(sound)] = torch.from_numpy(sound)
    mask = torch.zeros(1, 1, WINDOW, dtype=torch.bool)
    mask[..., : len(sound)] = True
    with torch.inference_mode():
        raw = scorer._model({"wav": batch, "mask": mask})
    score = scorer.score([Clip(sound, RATE)])[0]
    assert score.value == pytest.approx(raw["PQ"].item() * 2.5 + 8.0, abs=1e-5)
    assert score.parts["ce"] == pytest.approx(raw["CE"].item() * 1.0 + 5.0, abs=1e-5)


def test_silence_behind_the_end_is_masked():
    pieces, mask = windows(noise(10.5))
    assert pieces.shape == mask.shape == (2, 1, WINDOW)
    assert mask.sum(dim=(1, 2)).tolist() == [WINDOW, RATE // 2] and pieces[1, 0, RATE // 2 :].abs().max() == 0
    assert windows(noise(10.0))[0].shape == (1, 1, WINDOW)


def test_batch_order_size_and_channels_do_not_matter(scorer):
    sounds = [noise(seconds, seed) for seed, seconds in enumerate((1.0, 11.0, 0.5, 2.0))]
    batch = [score.value for score in scorer.score([Clip(sound, RATE) for sound in sounds])]
    assert len({round(value, 4) for value in batch}) == 4
    np.testing.assert_allclose(
        [scorer.score([Clip(sound, RATE)])[0].value for sound in sounds], batch, atol=1e-5
    )
    np.testing.assert_allclose(
        [s.value for s in scorer.score([Clip(sound, RATE) for sound in sounds[::-1]])], batch[::-1], atol=1e-5
    )
    stereo = np.stack([sounds[0], sounds[3][:RATE]])
    assert scorer.score([Clip(stereo, RATE)])[0].value == pytest.approx(
        scorer.score([Clip(stereo.mean(axis=0), RATE)])[0].value, abs=1e-5
    )


def test_safetensors_beside_their_config_give_the_same_scores(scorer, tmp_path):
    from safetensors.torch import save_file

    save_file(
        {key: value.contiguous() for key, value in scorer._model.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file; it belongs beside"):
        AudioboxAesthetics.load(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIG, "target_transform": TRANSFORM, "freeze_encoder": True})
    )
    other = AudioboxAesthetics.load(tmp_path / "model.safetensors")
    clip = Clip(noise(1.0), RATE)
    assert other.score([clip])[0].value == scorer.score([clip])[0].value


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(None, RATE), "no sound"),
        (Clip(np.zeros(RATE, np.float32), RATE), "silent"),
        (Clip(noise(0.1), RATE), "at least 0.2 s"),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(scorer, clip, reason):
    bad, good = scorer.score([clip, Clip(noise(1.0), RATE)])
    assert math.isnan(bad.value) and reason in bad.reason
    assert math.isfinite(good.value)


def test_wrong_weights_are_one_line(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"facebook/audiobox-aesthetics \(CC-BY-4.0\)"):
        AudioboxAesthetics.load(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="sha256 is"):
        AudioboxAesthetics.load(checkpoint, "0" * 64)
    content = torch.load(checkpoint, weights_only=True)
    file = tmp_path / "other.pt"
    torch.save({"weights": {}}, file)
    with pytest.raises(ValueError, match="has no state_dict, model_cfg, target_transform"):
        AudioboxAesthetics.load(file)
    torch.save({**content, "target_transform": {"PQ": {"mean": 0.0, "std": 1.0}}}, file)
    with pytest.raises(ValueError, match="no mean and std for CE, CU, PC"):
        AudioboxAesthetics.load(file)
    content["state_dict"].popitem()
    torch.save(content, file)
    with pytest.raises(ValueError, match="weights of another model") as error:
        AudioboxAesthetics.load(file)
    assert "\n" not in str(error.value)
    file.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not readable as plain weights") as error:
        AudioboxAesthetics.load(file)
    assert "\n" not in str(error.value)
