"""Models that place clips for `nava curate`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.commands.curate import _model
from experiments.recipes.mini import mini
from pretrain.data.corpus.bank import load_bank
from pretrain.media.read import Media


def clip(voice: str, word: str) -> Media:
    sound = load_bank().utterances[word, voice][0].waveform
    return Media(np.full((9, 32, 32, 3), 80, np.uint8), 24.0, np.concatenate([sound] * 3), 16_000)


def made(name: str, **options):
    recipe = mini()
    curate = replace(recipe.curate, embedding=name, embedding_options=options)
    return _model(replace(recipe, curate=curate))


@pytest.mark.slow
def test_voices_tell_speakers_apart():
    named = made("experiments.preparation.embeddings:VoiceFeatures")
    assert named is not None
    name, make = named
    embedder = make()
    first, same, other = (
        embedder.embed(clip(voice, word))[2]
        for voice, word in (("slt", "garden"), ("slt", "window"), ("rms", "garden"))
    )
    assert first.shape == (256,) and "VoiceFeatures" in name
    assert first @ same > first @ other + 0.1
    with pytest.raises(ValueError, match=r"0\.1 s of sound"):
        embedder.embed(Media(None, 0.0, None, 16_000))


def test_wrong_models_are_one_line():
    with pytest.raises(ValueError, match=r"curate\.embedding: 'os:system'"):
        made("os:system")
    with pytest.raises(FileNotFoundError, match="CLAP"):
        made("experiments.preparation.embeddings:ClapFeatures", weights="/nowhere")
    recipe = mini()
    curate = replace(recipe.curate, embedding_options={"a": 1})
    with pytest.raises(ValueError, match=r"belong to curate\.embedding"):
        _model(replace(recipe, curate=curate))
    assert _model(recipe) is None
