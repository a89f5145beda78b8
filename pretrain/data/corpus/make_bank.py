"""Generates the speech bank with Debian's flite: `python -m pretrain.data.corpus.make_bank`.

Every word by every voice at every stretch, trimmed of silence and brought to one loudness, one FLAC per
voice, and an index of the utterances' positions. The same flite (2.2) gives the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from pretrain.data.corpus.bank import BANK_FOLDER, SAMPLE_RATE_HZ

VOICES = ("slt", "rms", "awb", "kal16")
WORDS = (
    *("zero", "one", "rocket", "seven", "green", "yellow", "garden", "window", "paper", "sugar"),
    *("summer", "doctor", "chicken", "ocean", "apple", "coffee", "orange", "candy", "banana", "table"),
)
STRETCHES = (0.88, 1.0, 1.08)
MAX_DURATION_S = 0.63
LOUDNESS = 0.09  # root mean square of a whole utterance, full scale 1
SILENCE = 0.03  # of the loudest 10 ms; quieter ends are cut
MARGIN_S = 0.005


def speak(word: str, voice: str, stretch: float) -> np.ndarray:
    """float32 [N] at 16 kHz. Raises OSError without flite, ValueError for another rate or too long a word."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        command = [
            "flite",
            "-voice",
            voice,
            "--setf",
            f"duration_stretch={stretch}",
            "-t",
            word,
            "-o",
            str(path),
        ]
        subprocess.run(command, check=True)
        waveform, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE_HZ:
        raise ValueError(f"flite voice {voice}: {rate} Hz; the bank needs a {SAMPLE_RATE_HZ} Hz voice")
    waveform = trimmed(waveform)
    if len(waveform) > MAX_DURATION_S * SAMPLE_RATE_HZ:
        raise ValueError(
            f"{word!r} by {voice}: {len(waveform) / SAMPLE_RATE_HZ:.3f} s; choose a word of at most "
            f"{MAX_DURATION_S} s"
        )
    return waveform


def trimmed(waveform: np.ndarray) -> np.ndarray:
    """A word without the silence at its ends, which fade, at the bank's loudness; float32 [N] at 16 kHz."""
    step, margin = SAMPLE_RATE_HZ // 100, round(MARGIN_S * SAMPLE_RATE_HZ)
    loudness = np.sqrt((waveform[: len(waveform) // step * step].reshape(-1, step) ** 2).mean(axis=1))
    loud = np.nonzero(loudness > SILENCE * loudness.max())[0]
    cut = waveform[max(0, loud[0] * step - margin) : (loud[-1] + 1) * step + margin].copy()
    fade = np.linspace(0.0, 1.0, margin, dtype=np.float32)
    cut[:margin] *= fade
    cut[-margin:] *= fade[::-1]
    return np.clip(cut * (LOUDNESS / np.sqrt(np.mean(cut**2))), -1.0, 1.0)


def main() -> None:
    """Writes `<voice>.flac` and `index.json` into the bank's folder."""
    BANK_FOLDER.mkdir(exist_ok=True)
    index = []
    for voice in VOICES:
        pieces, position = [], 0
        for word in WORDS:
            for stretch in STRETCHES:
                waveform = speak(word, voice, stretch)
                index.append(
                    {
                        "voice": voice,
                        "word": word,
                        "stretch": stretch,
                        "start": position,
                        "end": position + len(waveform),
                    }
                )
                pieces.append(waveform)
                position += len(waveform)
        soundfile.write(
            BANK_FOLDER / f"{voice}.flac", np.concatenate(pieces), SAMPLE_RATE_HZ, subtype="PCM_16"
        )
    lines = ",\n".join(json.dumps(entry) for entry in index)
    (BANK_FOLDER / "index.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
