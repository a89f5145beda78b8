"""Marks of a wav: all of them come back, whatever is in them, and no sample changes."""

import numpy as np
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.media.read import read_media
from pretrain.media.wav_marks import mark_wav, marks_of_wav
from pretrain.media.write import write_wav

words = st.text(st.characters(codec="utf-8"), max_size=60)


@given(
    marks=st.dictionaries(words, words, max_size=5), length=st.integers(1, 999), channels=st.integers(1, 2)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_marks_come_back_and_samples_stay(tmp_path, marks, length, channels):
    path = tmp_path / "a.wav"
    write_wav(path, np.random.default_rng(length).uniform(-1, 1, (channels, length)), 16_000)
    before = soundfile.read(path)[0]
    assert marks_of_wav(path) == {}
    mark_wav(path, marks)
    assert marks_of_wav(path) == marks and np.array_equal(soundfile.read(path)[0], before)
    content = path.read_bytes()
    assert int.from_bytes(content[4:8], "little") + 8 == len(content)
    assert [one.name for one in tmp_path.iterdir()] == ["a.wav"]


def test_a_marked_wav_is_read_like_any(tmp_path):
    path = tmp_path / "a.wav"
    write_wav(path, np.full(1600, 0.25), 16_000)
    mark_wav(path, {"comment": "generated", "seed": "5"})
    sound = read_media(path, want_video=False).waveform
    assert sound is not None and sound.shape[-1] == 1600 and np.allclose(sound, 0.25, atol=1e-4)
