"""CLAP on a tiny random ClapModel saved and read as a snapshot would be: preparation, Verse-Bench's distance,
text cosine."""

import math

import numpy as np
import pytest
import torch

from rewards.semantic.clap import RATE_HZ, ClapEncoder, TextSoundCosine, VerseBenchDistance, as_heard
from rewards.types import Clip

LETTERS = {letter: i + 5 for i, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ.")}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return save_tiny_clap(tmp_path_factory.mktemp("clap"))


def save_tiny_clap(folder):
    """A random ClapModel with its extractor and tokenizer, as a snapshot would be."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    text = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    audio = {
        "hidden_size": 64,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    }
    text |= {"max_position_embeddings": 90, "projection_dim": 16}
    audio |= {"enable_fusion": True, "projection_dim": 16, "window_size": 8}
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))
    with torch.no_grad():  # so that sounds, crops and texts can be told apart
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    ClapFeatureExtractor().save_pretrained(folder)
    RobertaTokenizer(
        vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, **LETTERS}, merges=[]
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(snapshot):
    return ClapEncoder.load(snapshot)


def tone(hertz: float, seconds: float = 1.0, seed: int = 0, rate: int = RATE_HZ) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    return (
        0.3 * np.sin(2 * np.pi * hertz * time) * (1 + np.sin(9 * time)) / 2
        + 0.01 * rng.standard_normal(len(time))
    ).astype(np.float32)


def test_sounds_are_brought_to_minus_one_db_and_16_bits():
    heard = as_heard(np.array([0.1, -0.2, 0.05], np.float32))
    assert heard.min() == pytest.approx(-(10 ** (-1 / 20)), abs=1e-4)
    np.testing.assert_array_equal(heard * 32767, np.trunc(np.round(heard * 32767)))
    assert heard[2] * 32767 == math.floor(0.25 * 10 ** (-1 / 20) * 32767)
    np.testing.assert_allclose(as_heard(0.01 * tone(300)), as_heard(tone(300)), atol=1.01 / 32767)


def test_embeddings_are_unit_length_and_differ(encoder):
    sounds = encoder.embed_sounds([tone(200), tone(3000), tone(200, 12.0)])
    texts = encoder.embed_texts(["a dog barks", "rain"])
    assert sounds.shape == (3, 16) and texts.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([sounds, texts]), axis=1), 1.0, atol=1e-6)
    assert np.abs(sounds[0] - sounds[1]).max() > 1e-3 and np.abs(texts[0] - texts[1]).max() > 1e-3


def test_features_are_the_extractors_repeat_pad(encoder):
    features = encoder._features(tone(200, 3.0))
    assert features.shape == (1, 4, 1001, 64)
    np.testing.assert_array_equal(features[0, 0], features[0, 3])
    np.testing.assert_allclose(features[0, 0, 10:290], features[0, 0, 310:590], atol=1e-4)  # 3 s, repeated
    assert features[0, 0, 910:].max() <= -99.9  # and silence behind the third


def test_batches_of_any_size_and_order_give_the_same(encoder):
    sounds = [tone(200 * (i + 1), seconds, seed=i) for i, seconds in enumerate((1.0, 11.0, 0.5))]
    batch = encoder.embed_sounds(sounds)
    np.testing.assert_allclose(
        np.concatenate([encoder.embed_sounds([sound]) for sound in sounds]), batch, atol=1e-5
    )
    np.testing.assert_allclose(encoder.embed_sounds(sounds[::-1]), batch[::-1], atol=1e-5)
    np.testing.assert_allclose(
        encoder.embed_texts(["rain", "a dog"])[::-1], encoder.embed_texts(["a dog", "rain"]), atol=1e-5
    )


def test_crops_follow_the_seed_and_leave_numpys_state_alone(snapshot, encoder):
    sound = np.concatenate([tone(200, 6.0), tone(3000, 7.0, seed=1)])
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    first = encoder.embed_sounds([sound])
    assert np.random.random() == expected
    np.testing.assert_array_equal(encoder.embed_sounds([sound]), first)
    assert np.abs(ClapEncoder.load(snapshot, seed=1).embed_sounds([sound]) - first).max() > 1e-5


def test_distance_to_itself_is_0_and_to_another_2_minus_2_cos(encoder):
    made, real = tone(200), tone(3000, seed=1)
    scores = VerseBenchDistance(encoder).score(
        [Clip(made, RATE_HZ, reference_sound=sound) for sound in (made, 0.5 * made, real)]
    )
    first, second = encoder.embed_sounds([made, real])
    assert scores[0].value == pytest.approx(0.0, abs=1e-6)
    assert scores[1].value == pytest.approx(0.0, abs=1e-3)  # the loudness of a recording does not count
    assert scores[2].value == pytest.approx(2 - 2 * float(first @ second), abs=1e-5)
    assert scores[2].value > 1e-3


def test_stereo_is_its_mono_down_mix(encoder):
    stereo = np.stack([tone(200), tone(900, seed=2)])
    both = [Clip(sound, RATE_HZ, reference_sound=tone(400)) for sound in (stereo, stereo.mean(axis=0))]
    values = [score.value for score in VerseBenchDistance(encoder).score(both)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_text_cosine_is_that_of_the_chosen_text(encoder):
    clip = Clip(tone(200), RATE_HZ, prompt="says hello. rain")
    whole = TextSoundCosine(encoder).score([clip])[0].value
    chosen = TextSoundCosine(encoder, text=lambda one: one.prompt.split(". ")[1]).score([clip])[0].value
    sound, texts = encoder.embed_sounds([tone(200)]), encoder.embed_texts([clip.prompt, "rain"])
    np.testing.assert_allclose([whole, chosen], texts @ sound[0], atol=1e-5)
    assert whole != chosen


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(tone(200), RATE_HZ), "no reference recording"),
        (Clip(np.zeros(RATE_HZ, np.float32), RATE_HZ, reference_sound=tone(200)), "silent"),
        (
            Clip(tone(200), RATE_HZ, reference_sound=np.zeros(RATE_HZ, np.float32)),
            "reference recording: silent",
        ),
    ],
)
def test_what_cannot_be_compared_is_nan_with_a_reason(encoder, clip, reason):
    bad, good = VerseBenchDistance(encoder).score([clip, Clip(tone(200), RATE_HZ, reference_sound=tone(300))])
    assert math.isnan(bad.value) and bad.reason == reason
    assert math.isfinite(good.value)
    assert (
        TextSoundCosine(encoder).score([Clip(tone(200), RATE_HZ, prompt=" ")])[0].reason
        == "no text to compare the sound with"
    )


def test_a_missing_or_incomplete_snapshot_is_one_line(snapshot, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    with pytest.raises(
        FileNotFoundError, match=r"CLAP: .*model.safetensors: no such file; get it from huggingface.co/laion"
    ) as missing:
        ClapEncoder.load(tmp_path)
    assert "\n" not in str(missing.value)
    with pytest.raises(ValueError, match="sha256 is"):
        ClapEncoder.load(snapshot, "0" * 64)
    folder = shutil.copytree(snapshot, tmp_path / "snapshot")
    weights = load_file(folder / "model.safetensors")
    weights.pop("audio_projection.linear1.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, first audio_projection.linear1.weight"):
        ClapEncoder.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no ClapModel in it") as broken:
        ClapEncoder.load(folder)
    assert "\n" not in str(broken.value)
