"""Encoded clips of a fine-tuning are used again as long as nothing that they were made of has changed."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from align_world import write_world
from test_codecs import sounds
from test_finetune_command import clip

from experiments.pipeline import finetune_sets
from finetune.sft.config import FinetuneConfig, SoundConfig
from pretrain.codecs.load import load_codecs
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.encoding.encode import encode_set
from pretrain.data.encoding.media_files import files_of, media_digest, stamp_of
from pretrain.data.manifest import ManifestRow, write_manifest
from pretrain.data.stream.store import LatentStore
from pretrain.generation.config import GenerateConfig
from pretrain.media.write import write_wav
from pretrain.storage import place

CONFIG = FinetuneConfig(sound=SoundConfig(required=False), base_share=0.0)
SIZES = GenerateConfig(num_frames=5, height=32, width=32)


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world")) / "codec"


@pytest.fixture(autouse=True)
def encoded(monkeypatch) -> list[str]:
    """Sets are encoded in this process; returns the folders."""
    made: list[str] = []

    def encode_here(job, *_):
        made.append(job.to)
        (one,) = job.sets
        facts = encode_set(job.config, Path(one.manifest), load_codecs(job.codec), Path(job.to) / one.name)
        return {one.name: {"num_rejected": len(facts["rejected"]), "rejected": facts["rejected"]}}

    monkeypatch.setattr(finetune_sets, "encode_places", encode_here)
    return made


def _plain(folder: Path, seeds: range) -> Path:
    folder.mkdir(exist_ok=True)
    for index, seed in enumerate(seeds):
        clip(folder / f"{index}.mp4", seed=seed)
        (folder / f"{index}.txt").write_text("A man says <S>seven<E>.")
    return folder


def _prepared(clips: Path, codec: Path, to: Path, encode: EncodeConfig | None = None) -> Path:
    return finetune_sets.prepared_sets(clips, CONFIG, encode or EncodeConfig(), SIZES, codec, to)[0]


def test_clips_that_were_replaced_are_encoded_anew_and_the_same_ones_are_not(
    tmp_path, codec, encoded, capsys
):
    mine, to = _plain(tmp_path / "mine", range(4)), tmp_path / "sets"
    first = _prepared(mine, codec, to)
    assert "changed" not in capsys.readouterr().out
    assert _prepared(mine, codec, to) == first and len(encoded) == 1
    assert "encoded before; neither the clips' files nor their rows have changed" in capsys.readouterr().out
    _plain(mine, range(4, 8))  # the same names, lengths and texts
    second = _prepared(mine, codec, to)
    assert second != first and len(encoded) == 2
    assert f"anew: the clips' files changed since {first.parent.name} was encoded" in capsys.readouterr().out
    before, after = LatentStore(first), LatentStore(second)
    for old, new in zip(before, after, strict=True):
        assert old.video is not None and new.video is not None and not torch.equal(old.video, new.video)
    # what a training depends on (`digests_of_sets`): a finished one is not kept with these clips
    assert before.manifest["index_sha256"] != after.manifest["index_sha256"]
    assert _prepared(mine, codec, to, EncodeConfig(batch_size=3)) not in (first, second)
    assert "settings of encode" in capsys.readouterr().out


def test_a_recording_of_a_voice_that_was_replaced_is_heard(tmp_path, codec, encoded):
    row, voice = clip(tmp_path / "a.mp4"), tmp_path / "voice.wav"
    write_manifest(tmp_path / "rows.jsonl", [replace(row, meta={"reference_paths": ["voice.wav"]})])
    voices = []
    for seed in (1, 2):
        write_wav(voice, sounds()[seed].numpy(), 16_000)
        set_of_it = _prepared(tmp_path / "rows.jsonl", codec, tmp_path / "sets")
        voices.append(LatentStore(set_of_it)[0].speakers)
    assert len(encoded) == 2 and not torch.equal(*voices)


def test_a_set_of_an_earlier_version_is_left_alone(tmp_path, codec, encoded, capsys):
    mine, to = _plain(tmp_path / "mine", range(2)), tmp_path / "sets"
    made = _prepared(mine, codec, to)
    (made.parent / finetune_sets.MADE_OF).unlink()
    old = shutil.move(made.parent, to / "0123456789abcdef")
    again = _prepared(mine, codec, to)
    assert len(encoded) == 2 and LatentStore(Path(old) / "clips").manifest == LatentStore(again).manifest


def test_stamps_follow_size_time_and_presence(tmp_path):
    file = tmp_path / "a"
    assert stamp_of(file) == stamp_of(file / "below") == "missing"
    file.write_text("one")
    first = stamp_of(file)
    assert stamp_of(file) == first
    os.utime(file, ns=(1, 1))
    assert len({first, stamp_of(file), "missing"}) == 3
    far = place("memory://stamps/a")
    assert stamp_of(far) == "missing"
    far.write_text("one")
    there = stamp_of(far)
    far.write_text("four")
    assert len({there, stamp_of(far), "missing"}) == 3
    assert media_digest([file, far]) != media_digest([far, file])


def test_a_hundred_thousand_files_are_looked_at_in_seconds(tmp_path):
    (tmp_path / "a.mp4").write_text("")
    row = ManifestRow(
        "a", tmp_path / "a.mp4", 24.0, 1.0, 32, 32, "", (), (), meta={"reference_paths": ["a.mp4", None]}
    )
    started = time.process_time()
    files = files_of([row] * 50_000, tmp_path)
    assert len(files) == 100_000 and media_digest(files)
    assert time.process_time() - started < 10
