"""Generates the fifth voice with espeak-ng: `python -m experiments.benchmarks.fifth_voice.synthesise`.

The words of the speech bank, trimmed and of the same loudness; bank/DATA_CARD.md. The same
espeak-ng (1.51) gives the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from experiments.benchmarks.fifth_voice.voice import BANK_FOLDER, INDEX, SOUND, VOICE
from pretrain.data.corpus.bank import SAMPLE_RATE_HZ
from pretrain.data.corpus.make_bank import WORDS, trimmed

STRETCHES = (0.88, 0.94, 1.0, 1.08)
ENGINE_VOICE, PITCH, WORDS_PER_MINUTE = "en-us+f5", 50, 150


def speak(word: str, stretch: float) -> np.ndarray:
    """float32 [N] at 16 kHz. Raises OSError without espeak-ng."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        speed = str(int(WORDS_PER_MINUTE / stretch))
        command = ["espeak-ng", "-v", ENGINE_VOICE, "-p", str(PITCH), "-s", speed, "-w", str(path), word]
        subprocess.run(command, check=True)
        waveform, rate = soundfile.read(path, dtype="float32")
    common = gcd(SAMPLE_RATE_HZ, rate)
    return trimmed(resample_poly(waveform, SAMPLE_RATE_HZ // common, rate // common).astype(np.float32))


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
