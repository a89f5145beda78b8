"""Generation end to end on a random model: files, marks, repeatability, first frames, and refusals before any
work."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import audio_stream, conditioning, debug_model, video_stream

from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.data.corpus.bank import load_bank
from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.solvers import Latents
from pretrain.generate import generate
from pretrain.generation.config import GenerateConfig
from pretrain.media.read import read_media, read_metadata
from pretrain.media.write import write_mp4, write_wav
from pretrain.model.checkpoint import load_model, read_model_folder, write_model
from pretrain.model.flavors import flavor
from pretrain.sampling import LatentRates, SamplerConfig, sample

QUICK = GenerateConfig(
    sampler=SamplerConfig(solver="euler", steps=2, shift=1.0, guidance=GuidanceScales()),
    batch_size=2,
    bf16=False,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small corpus, its codec and a random model."""
    folder = tmp_path_factory.mktemp("made")
    talk = dict.fromkeys(("talk_a", "talk_b", "talk_test"), 0)
    build_corpus(
        CorpusConfig(paired=40, audio_only=40, hq_audio=20, validation=4, processes=1, **talk),
        folder / "corpus",
    )
    fit_codecs(CodecConfig(), folder / "corpus", folder / "codec")
    codec_id = json.loads((folder / "codec" / "config.json").read_text())["codec_id"]
    write_model(
        folder / "model",
        "debug",
        flavor("debug"),
        {"ema": debug_model().state_dict()},
        {"codec_id": codec_id, "stage": "none"},
    )
    write_wav(folder / "voice.wav", next(iter(load_bank().utterances.values()))[0].waveform, 16_000)
    return folder


def prompts(folder: Path, *rows: dict) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_clips_are_written_marked_and_repeatable(made: Path, tmp_path: Path) -> None:
    rows = [
        {"data_id": "a", "prompt": "A man says <S>zero<E>.", "spk_wavs": [str(made / "voice.wav")]},
        {"data_id": "b", "prompt": "A ball bounces."},
        {"data_id": "c", "prompt": "Two talk: <S>one<E> and <S>zero<E>.", "num_frames": 49},
    ]
    summary = generate(QUICK, made / "model", made / "codec", prompts(tmp_path, *rows), tmp_path / "out")
    assert summary["clips"] == 3
    index = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert [row["data_id"] for row in index] == ["a", "b", "c"]
    tags = read_metadata(tmp_path / "out" / "a.mp4")
    assert "generated" in tags["comment"]
    assert (
        tags["checkpoint_id"]
        == read_model_folder(made / "model").facts["checkpoint_id"]
        == summary["checkpoint_id"]
    )
    clip = read_media(tmp_path / "out" / "c.mp4")
    assert clip.frames is not None and clip.frames.shape == (49, 64, 64, 3)
    alone = prompts(tmp_path, rows[0])
    generate(QUICK, made / "model", made / "codec", alone, tmp_path / "again")
    first, second = (
        read_media(tmp_path / name / "a.wav", want_video=False).waveform for name in ("out", "again")
    )
    assert first is not None and second is not None
    np.testing.assert_allclose(first, second, atol=2e-3)  # a prompt gives the same clip in any batch


def test_a_given_first_frame_is_kept(made: Path, tmp_path: Path) -> None:
    picture = np.full((1, 64, 64, 3), 90, np.uint8)
    picture[:, :, 32:] = 200
    write_mp4(tmp_path / "still.mp4", picture, 24, None, 16_000)
    row = {"data_id": "a", "prompt": "A wall.", "image_path": str(tmp_path / "still.mp4")}
    generate(QUICK, made / "model", made / "codec", prompts(tmp_path, row), tmp_path / "out")
    frames = read_media(tmp_path / "out" / "a.mp4").frames
    assert frames is not None
    left, right = (frames[0, :, part].astype(float).mean() for part in (slice(0, 28), slice(36, 64)))
    assert right - left > 60


def test_clips_have_the_sizes_of_their_rows(made: Path, tmp_path: Path) -> None:
    write_mp4(tmp_path / "small.mp4", np.full((1, 32, 96, 3), 90, np.uint8), 24, None, 16_000)
    rows = [
        {"data_id": "a", "prompt": "A wall.", "num_frames": 5},
        {"data_id": "b", "prompt": "A wall.", "num_frames": 5, "height": 32, "width": 96},
        {
            "data_id": "c",
            "prompt": "A wall.",
            "num_frames": 5,
            "height": 32,
            "width": 96,
            "image_path": "small.mp4",
        },
    ]
    generate(QUICK, made / "model", made / "codec", prompts(tmp_path, *rows), tmp_path / "out")
    shapes = [read_media(tmp_path / "out" / f"{name}.mp4", want_audio=False).frames.shape for name in "abc"]  # type: ignore[union-attr]
    assert shapes == [(5, 64, 64, 3), (5, 32, 96, 3), (5, 32, 96, 3)]
    index = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert [row.get("image_path") for row in index] == [None, None, str(tmp_path / "small.mp4")]


def test_sampling_leaves_a_given_latent_frame_untouched() -> None:
    model, frame = debug_model(), torch.randn(2, 48, 1, 4, 4)
    noise = Latents(video_stream().latents, audio_stream().latents)
    for solver in ("euler", "unipc"):
        config = SamplerConfig(solver=solver, steps=3, shift=2.0, guidance=GuidanceScales())
        out = sample(model, noise, conditioning(), LatentRates(6.0, 25.0), config, frame)
        assert out.video is not None and out.audio is not None
        torch.testing.assert_close(out.video[:, :, :1], frame, atol=1e-5, rtol=1e-5)
        assert out.audio.isfinite().all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"data_id": "a", "prompt": "He says <S>zero<E>.", "spk_wavs": ["gone.wav"]},
            r"prompts.jsonl:1: .*gone.wav does not exist",
        ),
        ({"data_id": "a", "prompt": "He says <S>zero."}, "without <E>"),
        ({"data_id": "a", "prompt": "He.", "num_frames": 24}, "1 \\+ 4n"),
    ],
)
def test_bad_prompts_are_refused_before_anything_is_written(
    made: Path, tmp_path: Path, row: dict, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        generate(QUICK, made / "model", made / "codec", prompts(tmp_path, row), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_of_another_size_is_refused_with_its_row(made: Path, tmp_path: Path) -> None:
    write_mp4(tmp_path / "small.mp4", np.zeros((1, 32, 32, 3), np.uint8), 24, None, 16_000)
    rows = [
        {"data_id": "a", "prompt": "A wall."},
        {"data_id": "b", "prompt": "A wall.", "image_path": "small.mp4"},
    ]
    with pytest.raises(
        ValueError, match=r"prompts.jsonl:2 image_path: .*small.mp4 has 32x32 pixels; resize it to 64x64"
    ):
        exact = dataclasses.replace(QUICK, fit="exact")
        generate(exact, made / "model", made / "codec", prompts(tmp_path, *rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_codec_is_refused(made: Path, tmp_path: Path) -> None:
    write_model(
        tmp_path / "model",
        "debug",
        flavor("debug"),
        {"ema": debug_model().state_dict()},
        {"codec_id": "other"},
    )
    with pytest.raises(ValueError, match="trained on latents of codec other"):
        generate(
            QUICK,
            tmp_path / "model",
            made / "codec",
            prompts(tmp_path, {"data_id": "a", "prompt": "x"}),
            tmp_path / "out",
        )


def test_damaged_and_foreign_models_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)
    state = debug_model().state_dict()
    wrong = {key: value for key, value in state.items() if key != "head.linear.bias"}
    wrong |= {"stranger": torch.zeros(1), "head.linear.weight": torch.zeros(3, 3)}
    write_model(tmp_path, "debug", flavor("debug"), {"ema": wrong}, {})
    with pytest.raises(
        ValueError,
        match=r"missing head.linear.bias \(of 1\); extra stranger \(of 1\); misshapen head.linear.weight",
    ):
        load_model(tmp_path)
    weights = tmp_path / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: missing"):
        load_model(tmp_path, "model")
