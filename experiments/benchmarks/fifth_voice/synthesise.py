"""Generates the fifth voice with festival: `python -m experiments.benchmarks.fifth_voice.synthesise`.

The words of the speech bank by a diphone voice, played faster so that pitch and formants are higher, trimmed
and of the bank's loudness; bank/DATA_CARD.md. The same festival (2.5.0) gives the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from experiments.benchmarks.fifth_voice.voice import BANK_FOLDER, INDEX, SOUND, VOICE
from pretrain.data.corpus.bank import SAMPLE_RATE_HZ
from pretrain.data.corpus.make_bank import WORDS, trimmed

STRETCHES = (0.88, 0.94, 1.0, 1.08)
ENGINE_VOICE = "ked_diphone"
SLOWER, HIGHER = 1.1, (6, 5)  # how much longer the words are than festival's, how much higher the voice
_SCRIPT = """(voice_{voice})
(Parameter.set 'Duration_Stretch {stretch})
(utt.save.wave (utt.synth (Utterance Text "{word}")) "{path}" 'riff)
"""


def speak(word: str, stretch: float) -> np.ndarray:
    """float32 [N] at 16 kHz. Raises OSError without festival, ValueError for a voice of another rate."""
    up, down = HIGHER
    with tempfile.TemporaryDirectory() as folder:
        path, script = Path(folder) / "word.wav", Path(folder) / "word.scm"
        longer = stretch * SLOWER * up / down
        script.write_text(_SCRIPT.format(voice=ENGINE_VOICE, stretch=longer, word=word, path=path))
        subprocess.run(["festival", "--batch", str(script)], check=True)
        waveform, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE_HZ:
        raise ValueError(f"festival voice {ENGINE_VOICE}: {rate} Hz; the bank needs {SAMPLE_RATE_HZ} Hz")
    return trimmed(resample_poly(waveform, down, up).astype(np.float32))


def main() -> None:
    """Writes the sound and its index into bank/."""
    pieces, index, position = [], [], 0
    for word in WORDS:
        for stretch in STRETCHES:
            waveform = speak(word, stretch)
            place = {"start": position, "end": position + len(waveform)}
            index.append({"voice": VOICE, "word": word, "stretch": stretch, **place})
            pieces.append(waveform)
            position += len(waveform)
    soundfile.write(BANK_FOLDER / SOUND, np.concatenate(pieces), SAMPLE_RATE_HZ, subtype="PCM_16")
    lines = ",\n".join(json.dumps(entry) for entry in index)
    (BANK_FOLDER / INDEX).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
