"""Figures of NAVA's project page (arXiv 2605.30073) that our tables stand beside."""

from __future__ import annotations

PaperTable = dict[str, dict[str, float]]  # system -> metric -> value

# Verse-Bench; WER is a fraction, IB a raw cosine. VideoQ is not defined there: (AS + ID) / 2 by its range.
VERSE_BENCH: PaperTable = {
    "Ovi 1.1": {
        "Sync-C": 7.4839,
        "Sync-D": 7.9791,
        "IB": 0.199,
        "VideoQ": 0.636,
        "WER": 0.102,
        "PQ": 5.8432,
        "FD": 0.9418,
    },
    "MOVA": {
        "Sync-C": 7.2888,
        "Sync-D": 7.8080,
        "IB": 0.269,
        "VideoQ": 0.603,
        "WER": 0.126,
        "PQ": 7.2331,
        "FD": 0.9222,
    },
    "daVinci": {
        "Sync-C": 7.1487,
        "Sync-D": 7.8158,
        "IB": 0.269,
        "VideoQ": 0.600,
        "WER": 0.151,
        "PQ": 5.9559,
        "FD": 0.9307,
    },
    "LTX 2.3": {
        "Sync-C": 7.2476,
        "Sync-D": 7.6902,
        "IB": 0.337,
        "VideoQ": 0.576,
        "WER": 0.106,
        "PQ": 6.9459,
        "FD": 0.8287,
    },
    "NAVA": {
        "Sync-C": 7.7914,
        "Sync-D": 7.5655,
        "IB": 0.313,
        "VideoQ": 0.659,
        "WER": 0.099,
        "PQ": 6.8609,
        "FD": 0.8328,
    },
}
# Seed-TTS eval, English: WER in percent, SIM x100
SEED_TTS_EN: PaperTable = {
    "CosyVoice": {"WER": 4.29, "SIM": 60.9},
    "Qwen2.5-Omni": {"WER": 2.72, "SIM": 63.2},
    "DreamID-Omni": {"WER": 33.44, "SIM": 34.1},
    "NAVA": {"WER": 5.81, "SIM": 62.4},
}
