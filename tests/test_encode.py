"""Manifests to stored latents and back: what is stored, what is rejected with a reason, and damage that is
noticed."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.codecs.base import Codecs
from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.codecs.load import load_codecs
from pretrain.data.corpus.bank import load_bank
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.encoding.encode import encode_set, encode_sets
from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.manifest import ManifestRow, read_manifest, write_manifest
from pretrain.data.stream.sample import Sample
from pretrain.data.stream.store import LatentStore
from pretrain.media.read import read_media
from pretrain.media.write import write_mp4, write_wav

RATE = 16_000
CONFIG = EncodeConfig(batch_size=4)


def spoken(index: int, num_samples: int) -> tuple[np.ndarray, str, float]:
    """A word in the middle of a sound, the word, and its duration in seconds."""
    utterance = list(load_bank().utterances.values())[index][0]
    sound = np.zeros(num_samples, np.float32)
    part = utterance.waveform[: num_samples - 2000]
    sound[1000 : 1000 + len(part)] = part
    return sound, utterance.word, len(part) / RATE


def textures(index: int, num_frames: int, size: int = 32) -> np.ndarray:
    generator = torch.Generator().manual_seed(index)
    coarse = torch.rand(1, 3, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(num_frames, size, size), mode="trilinear")[0]
    return (smooth * 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()


def make_row(
    folder: Path, index: int, num_frames: int = 25, sound_only: bool = False, **changes: object
) -> ManifestRow:
    sound, word, spoken_s = spoken(index, round(num_frames / 24 * RATE))
    name = f"clip-{index}" + (".wav" if sound_only else ".mp4")
    if sound_only:
        write_wav(folder / name, sound, RATE)
    else:
        write_mp4(folder / name, textures(index, num_frames), 24, sound, RATE)
    times = (1000 / RATE,), (1000 / RATE + spoken_s,)
    row = ManifestRow(
        f"clip-{index}",
        folder / name,
        0.0 if sound_only else 24.0,
        num_frames / 24,
        32,
        32,
        f"A voice says <S>{word}<E>.",
        *times,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_wav(folder / "reference.wav", spoken(5, 16_000)[0], RATE)
    paired = [make_row(folder, index, 25 if index % 3 else 49) for index in range(12)]
    paired[1] = replace(paired[1], meta={"reference_paths": ["reference.wav"], "kind": "speech"})
    paired[2] = replace(paired[2], meta={"reference_paths": [""]})
    write_manifest(folder / "paired.jsonl", paired)
    write_manifest(
        folder / "audio_only.jsonl", [make_row(folder, index, 25, sound_only=True) for index in range(20, 30)]
    )
    write_manifest(folder / "validation.jsonl", paired[:3])
    return folder


@pytest.fixture(scope="module")
def codec(corpus: Path) -> Path:
    config = CodecConfig(
        audio_sets=("audio_only", "paired"), max_clips=20, text_width=64, griffin_lim_iterations=2
    )
    errors = fit_codecs(config, corpus, corpus / "codec")
    assert json.loads((corpus / "codec" / "errors.json").read_text()) == errors
    assert errors["video_psnr_db"] > 28 and 0.9 < errors["video_explained_variance"] <= 1
    assert errors["audio_log_mel_rmse"] < 0.3 and 0.9 < errors["audio_explained_variance"] <= 1
    return corpus / "codec"


@pytest.fixture(scope="module")
def codecs(codec: Path) -> Codecs:
    return load_codecs(codec)


def test_fit_is_deterministic(corpus: Path, codec: Path, tmp_path: Path) -> None:
    config = CodecConfig(
        audio_sets=("audio_only", "paired"), max_clips=20, text_width=64, griffin_lim_iterations=2
    )
    assert fit_codecs(config, corpus, tmp_path / "codec")["codec_id"] == load_codecs(codec).codec_id


def test_encoded_sets(corpus: Path, codec: Path, codecs: Codecs, tmp_path: Path) -> None:
    manifests = {name: corpus / f"{name}.jsonl" for name in ("paired", "audio_only")}
    summary = encode_sets(CONFIG, manifests, codec, tmp_path)
    assert summary["paired"]["samples"] == 12 and summary["paired"]["rejected"] == []
    store = LatentStore(tmp_path / "paired", codec_id=codecs.codec_id)
    rows = read_manifest(manifests["paired"])[0]
    assert [sample.data_id for sample in store] == [row.data_id for row in rows]
    for index, sample in enumerate(store):
        length = (7, 26) if index % 3 else (13, 51)
        assert sample.video is not None and sample.video.shape == (48, length[0], 2, 2)
        assert sample.audio is not None and sample.audio.shape == (128, length[1])
        assert (
            sample.video_rate_hz == 6.0 and sample.text.shape[1] == 64 and sample.text.dtype == torch.float32
        )
        assert sample.speaker_positions.shape == (1,) and sample.speakers.shape == (1, 192)
        assert sample.meta["text"] == rows[index].text
    assert store[1].meta["kind"] == "speech"
    assert bool(store[0].speakers.any()) and not bool(store[2].speakers.any())  # own sound; "" means none
    reference = torch.from_numpy(spoken(5, 16_000)[0])
    torch.testing.assert_close(
        store[1].speakers[0], codecs.speaker.embed((reference * 32768).round() / 32768), atol=0.05, rtol=0
    )
    heard = LatentStore(tmp_path / "audio_only")
    assert all(
        sample.video is None and sample.audio is not None and sample.audio.shape == (128, 26)
        for sample in heard
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_reference_i_is_the_voice_of_span_i(codecs: Codecs, tmp_path: Path, order: tuple[int, int]) -> None:
    names = ["first.wav", "second.wav"]
    for index, name in enumerate(names):
        write_wav(tmp_path / name, spoken(5 + 7 * index, 16_000)[0], RATE)
    row = make_row(
        tmp_path, 1, text="<S>one<E> and <S>two<E>", speech_start_s=(0.06, 0.15), speech_end_s=(0.2, 0.35)
    )
    rows = [
        replace(row, data_id=name, meta=meta)
        for name, meta in (
            ("both", {"reference_paths": [names[index] for index in order]}),
            ("second", {"reference_paths": ["", names[1]]}),
            ("own", {}),
        )
    ]
    write_manifest(tmp_path / "rows.jsonl", rows)
    encode_set(CONFIG, tmp_path / "rows.jsonl", codecs, tmp_path / "set")
    both, second, own = LatentStore(tmp_path / "set")
    voices = [
        codecs.speaker.embed(torch.from_numpy(read_media(tmp_path / name, want_video=False).waveform))
        for name in names
    ]
    assert not torch.allclose(voices[0], voices[1], atol=0.1)
    torch.testing.assert_close(both.speakers, torch.stack([voices[index] for index in order]))
    assert not bool(second.speakers[0].any())
    torch.testing.assert_close(second.speakers[1], voices[1])
    assert bool(own.speakers.any(dim=1).all()) and not torch.equal(own.speakers[0], own.speakers[1])
    assert (
        both.speaker_positions.tolist() == sorted(both.speaker_positions.tolist())
        and len(set(both.speaker_positions.tolist())) == 2
    )


def test_paired_rows_can_be_used_for_their_sound_alone(corpus: Path, codecs: Codecs, tmp_path: Path) -> None:
    encode_set(CONFIG, corpus / "paired.jsonl", codecs, tmp_path / "set", audio_only=True)
    assert all(sample.video is None and sample.audio is not None for sample in LatentStore(tmp_path / "set"))


def test_batching_changes_nothing(corpus: Path, codecs: Codecs, tmp_path: Path) -> None:
    for size in (1, 5):
        encode_set(replace(CONFIG, batch_size=size), corpus / "paired.jsonl", codecs, tmp_path / str(size))
    for one, many in zip(LatentStore(tmp_path / "1"), LatentStore(tmp_path / "5"), strict=True):
        assert (
            one.video is not None
            and many.video is not None
            and one.audio is not None
            and many.audio is not None
        )
        torch.testing.assert_close(one.video, many.video, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.audio, many.audio, atol=1e-4, rtol=1e-4)
        assert torch.equal(one.text, many.text)


def bad_row(folder: Path, kind: str) -> ManifestRow:
    row = make_row(folder, 40, 24 if kind == "frames" else 25)
    if kind == "missing":
        return replace(row, data_path=folder / "nowhere.mp4")
    if kind == "empty":
        row.data_path.write_bytes(b"")
    if kind == "corrupt":
        row.data_path.write_bytes(b"no film " * 50)
    if kind == "reference":
        return replace(row, meta={"reference_paths": ["nowhere.wav"]})
    if kind == "references":
        return replace(row, meta={"reference_paths": ["a.wav", "b.wav"]})
    if kind == "numbers":
        return replace(row, meta={"reference_paths": [1]})
    if kind == "silent":
        return replace(row, speech_start_s=(0.0,), speech_end_s=(0.01,))
    return row


REASONS = {
    "missing": "no such file",
    "empty": "0 bytes",
    "corrupt": "not a media file",
    "frames": "1 + 4n",
    "reference": "nowhere.wav",
    "references": "at most 1",
    "numbers": "list of at most 1 paths",
    "silent": "silent",
}


@pytest.mark.parametrize("kind", REASONS)
def test_bad_rows_are_rejected_with_their_reason_and_counted(
    corpus: Path, codecs: Codecs, tmp_path: Path, kind: str
) -> None:
    good = read_manifest(corpus / "paired.jsonl")[0][:3]
    write_manifest(tmp_path / "rows.jsonl", [good[0], bad_row(tmp_path, kind), good[2]])
    summary = encode_set(
        replace(CONFIG, max_bad_fraction=0.5), tmp_path / "rows.jsonl", codecs, tmp_path / "set"
    )
    assert summary["samples"] == 2 and len(summary["rejected"]) == 1
    assert summary["rejected"][0].startswith("rows.jsonl:2 ") and REASONS[kind] in summary["rejected"][0]
    store = LatentStore(tmp_path / "set")
    assert [sample.data_id for sample in store] == [good[0].data_id, good[2].data_id]
    assert store.manifest["rejected"] == summary["rejected"]
    with pytest.raises(ValueError, match=r"rows.jsonl:2 .*1 of 3 rows are bad, more than 1%"):
        encode_set(CONFIG, tmp_path / "rows.jsonl", codecs, tmp_path / "strict")
    assert not (tmp_path / "strict").exists() and not list(tmp_path.glob(".strict*"))


def sample_of(index: int, **changes: object) -> Sample:
    generator = torch.Generator().manual_seed(index)
    video = torch.randn(48, 2, 2, 2, generator=generator)
    sample = Sample(
        f"id-{index}",
        video,
        torch.randn(128, 9, generator=generator),
        6.0,
        torch.randn(5, 64, generator=generator),
        torch.tensor([3]),
        torch.randn(1, 192, generator=generator),
        {"words": ["ü"]},
    )
    return replace(sample, **changes)  # type: ignore[arg-type]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 12),
    shard_kb=st.integers(1, 40),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    memory=st.booleans(),
)
def test_store_gives_back_what_was_written(
    tmp_path: Path, count: int, shard_kb: int, dtype: str, memory: bool
) -> None:
    with LatentWriter(tmp_path / "set", "codec", dtype, shard_kb * 1024) as writer:
        for index in range(count):
            writer.add(sample_of(index, **({"video": None} if index % 4 == 3 else {})))
    store = LatentStore(tmp_path / "set", in_memory=memory)
    assert len(store) == count and store.codec_id == "codec"
    tolerance = 0.03 if dtype == "bfloat16" else 0.0
    for index in reversed(range(count)):
        found, written = store[index], sample_of(index)
        assert (found.data_id, found.meta, found.video is None) == (
            written.data_id,
            written.meta,
            index % 4 == 3,
        )
        for name in ("audio",) if found.video is None else ("audio", "video"):
            torch.testing.assert_close(
                getattr(found, name), getattr(written, name), atol=tolerance, rtol=tolerance / 3
            )
        assert torch.equal(found.text, written.text.half().float()) and torch.equal(
            found.speakers, written.speakers
        )
    assert len(pickle.loads(pickle.dumps(store))[0].text) == 5
    largest = max(path.stat().st_size for path in (tmp_path / "set").glob("shard-*"))
    assert largest <= max(shard_kb * 1024, 10 * 1024) + 2048  # one sample is about 8 KB


def test_non_finite_latents_name_the_sample_and_leave_the_old_set(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "set", "codec") as writer:
        writer.add(sample_of(0))
    with (
        pytest.raises(ValueError, match="id-7: audio has non-finite"),
        LatentWriter(tmp_path / "set", "codec") as writer,
    ):
        writer.add(sample_of(7, audio=torch.full((128, 9), float("nan"))))
    assert [sample.data_id for sample in LatentStore(tmp_path / "set")] == ["id-0"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_damage_is_noticed(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "set", "codec") as writer:
        writer.add(sample_of(0))
    shard, index = tmp_path / "set" / "shard-000000.safetensors", tmp_path / "set" / "index.arrow"
    whole = shard.read_bytes()
    for damaged, says in (
        (whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:], "the checksum of id-0 differs"),
        (whole[:-9], f"{len(whole) - 9} bytes, expected"),
        (b"\xff" * len(whole), "not a safetensors file"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"shard-000000.safetensors: damaged shard \({says}.*--verify"):
            LatentStore(tmp_path / "set")[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard is missing.*--verify"):
        LatentStore(tmp_path / "set")[0]
    index.write_bytes(index.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"index.arrow: missing or damaged"):
        LatentStore(tmp_path / "set")
    with pytest.raises(FileNotFoundError, match="nava encode"):
        LatentStore(tmp_path / "nowhere")


def test_another_codec_is_refused(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "set", "codec") as writer:
        writer.add(sample_of(0))
    with pytest.raises(ValueError, match="encoded by codec, the codec here is other"):
        LatentStore(tmp_path / "set", codec_id="other")


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="latent_dtype"):
        EncodeConfig(latent_dtype="float8")
    with pytest.raises(ValueError, match="positive"):
        EncodeConfig(batch_size=0)
