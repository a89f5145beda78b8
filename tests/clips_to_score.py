"""A tiny corpus with one clip per voice and a generated set, as the score stage reads them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pretrain.data.corpus.bank import load_bank
from pretrain.media.write import write_mp4, write_wav
from rewards.sync.layers import MINI
from rewards.sync.syncnet import SyncNet, save_syncnet

WORDS = ("seven", "green", "window", "garden")
BOX = [20, 30, 44, 50]


class Identity:
    def encode(self, values):
        return values

    decode = encode


def decode_nothing(monkeypatch) -> None:
    """The codec gives its clips back as they are."""
    for module in ("scoring.sets", "report.report"):
        monkeypatch.setattr(
            f"experiments.{module}.load_codecs",
            lambda folder: SimpleNamespace(video=Identity(), audio=Identity()),
        )


def write_clips_to_score(root: Path) -> tuple[Path, Path, Path, Path]:
    """Folders of corpus, codec, sync networks and generated sets; one generated clip says another word, one
    is silent."""
    corpus, generated = root / "corpus", root / "generated" / "pretrain_seen"
    rows, index = [], []
    for i, (voice, word) in enumerate(zip(load_bank().voices, WORDS, strict=True)):
        write_wav(
            corpus / f"references/{voice}_1.wav",
            np.concatenate([load_bank().utterances[w, voice][1].waveform for w in WORDS[::-1]]),
            16_000,
        )
        text, meta = (
            f"A face says <S>{word}<E>.",
            {
                "kind": "speech",
                "voices": [voice],
                "mouth_boxes": [BOX],
                "reference_paths": [f"references/{voice}_1.wav"],
            },
        )
        write_clip(corpus / f"clips/{i}.mp4", word, voice)
        write_clip(generated / f"g{i}.mp4", "" if i == 0 else "orange" if i == 1 else word, voice)
        info = {
            "data_path": f"clips/{i}.mp4",
            "fps": 24,
            "duration": 25 / 24,
            "image_width": 64,
            "image_height": 64,
        }
        rows.append({"data_id": f"r{i}", "video_info": [info], "text_list": [{"text": text}], "meta": meta})
        references = [str(corpus / path) for path in meta["reference_paths"]]
        index.append(
            {
                "data_id": f"g{i}",
                "prompt": text,
                "video": f"g{i}.mp4",
                "reference_paths": references,
                "meta": meta,
            }
        )
    (corpus / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (generated / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in index))
    for role in ("reward", "judge"):
        save_syncnet(SyncNet(MINI), root / "syncnet" / role)
    return corpus, root / "codec", root / "syncnet", root / "generated"


def write_clip(path, word, voice):
    track = np.zeros(16_640, np.float32)
    if word:
        waveform = load_bank().utterances[word, voice][0].waveform
        track[2400 : 2400 + len(waveform)] = waveform
    loudness = np.sqrt((track[: 25 * 665].reshape(25, 665) ** 2).mean(axis=1))
    frames = np.full((25, 64, 64, 3), 200, np.uint8)
    frames[:, BOX[1] : BOX[3], BOX[0] : BOX[2]] = (200 - 150 * loudness / max(loudness.max(), 1e-6)).astype(
        np.uint8
    )[:, None, None, None]
    write_mp4(path, frames, 24.0, track, 16_000)
