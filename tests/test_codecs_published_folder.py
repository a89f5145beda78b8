"""The codec folder of published parts: what it refuses, what its id depends on, what it loads when, and clips
through it end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import debug_model
from published_parts import (
    EXACT,
    REDIMNET,
    TEXT_WIDTH,
    write_codec,
    write_parts,
    write_text,
    write_tokenizer,
    write_wan,
)

from experiments.cli import main
from experiments.scoring.latents import AlignScorer
from pretrain.codecs.load import load_codecs
from pretrain.codecs.published import weights
from pretrain.codecs.published.deferred import PartError
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.encoding.encode import encode_sets
from pretrain.data.manifest import ManifestRow, write_manifest
from pretrain.data.stream.store import LatentStore
from pretrain.flow.guidance import GuidanceScales
from pretrain.generate import generate
from pretrain.generation.config import GenerateConfig
from pretrain.media.read import read_media
from pretrain.media.write import write_mp4, write_wav
from pretrain.model.checkpoint import write_model
from pretrain.model.flavors import flavor
from pretrain.prompt import parse
from pretrain.sampling import SamplerConfig
from rewards.timbre.redimnet import ReDimNet, read_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(whole, tmp_path / "parts")
    return tmp_path / "parts"


def configured(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without(path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors[name]
    save_file(tensors | {"stranger": torch.zeros(1)}, path)


def narrower_voice(path: Path) -> None:
    config = REDIMNET | {"embed_dim": 64}
    torch.save(
        {"model_config": config, "state_dict": ReDimNet(read_config(config, "test")).state_dict()}, path
    )


VAE, TEXT, LTX = "pipeline/vae", "pipeline/text_encoder", "ltx"
WEIGHTS, INDEX = "diffusion_pytorch_model.safetensors", '{"weight_map": {"a": "b.safetensors"}}'
DAMAGE = {
    "Wan2.1's VAE": (
        lambda at: configured(at / VAE / "config.json", z_dim=16, patch_size=None),
        "z_dim 16, expected 48; patch_size None",
    ),
    "few statistics": (
        lambda at: configured(at / VAE / "config.json", latents_mean=[0.0]),
        "latents_mean and latents_std need 48",
    ),
    "another VAE's weights": (
        lambda at: write_into(at / VAE, base_dim=16),
        r"misshapen .*not the weights of the Wan2.2 VAE",
    ),
    "no VAE": (
        lambda at: shutil.rmtree(at / VAE),
        r"no config.json of the Wan2.2 VAE.*Wan-AI/Wan2.2-TI2V-5B-Diffusers.*Apache-2.0",
    ),
    "truncated VAE": (
        lambda at: shortened(at / VAE / WEIGHTS),
        r"vae/diffusion_pytorch_model.safetensors: truncated",
    ),
    "empty VAE": (lambda at: (at / VAE / WEIGHTS).write_bytes(b""), "truncated or not a safetensors file"),
    "another tensor": (
        lambda at: without(at / VAE / WEIGHTS, "quant_conv.bias"),
        r"1 missing \(quant_conv.bias\); 1 unknown \(stranger\)",
    ),
    "pickled VAE": (
        lambda at: (at / VAE / WEIGHTS).rename(at / VAE / "Wan2.2_VAE.pth"),
        "only pickled weights, which are not read",
    ),
    "missing shard": (
        lambda at: (at / VAE / f"{WEIGHTS}.index.json").write_text(INDEX),
        "b.safetensors: missing .1 of 1 shards",
    ),
    "other mel bins": (
        lambda at: configured(at / LTX / "audio_vae" / "config.json", mel_bins=80),
        "mel_bins 80, expected 64",
    ),
    "no vocoder": (lambda at: shutil.rmtree(at / LTX / "vocoder"), "no config.json of the LTX-2 vocoder"),
    "another rate": (
        lambda at: configured(at / LTX / "vocoder" / "config.json", output_sampling_rate=44_100),
        "no 10 ms of a mel frame",
    ),
    "another text model": (
        lambda at: configured(at / TEXT / "config.json", model_type="t5"),
        "model_type 't5', expected 'umt5'",
    ),
    "truncated text": (
        lambda at: shortened(at / TEXT / "model.safetensors"),
        "text_encoder/model.safetensors: truncated",
    ),
    "no timbre token": (
        lambda at: write_tokenizer(at / "pipeline" / "tokenizer", extra_ids=0),
        "<extra_id_2> is no token",
    ),
    "larger vocabulary": (
        lambda at: write_tokenizer(at / "pipeline" / "tokenizer", extra_ids=50),
        "tokens, the encoder knows",
    ),
    "damaged tokenizer": (
        lambda at: (at / "pipeline/tokenizer/tokenizer.json").write_text("{"),
        "not a readable tokenizer",
    ),
    "no tokenizer": (lambda at: shutil.rmtree(at / "pipeline" / "tokenizer"), "no tokenizer_config.json"),
    "no speaker": (
        lambda at: (at / "speaker.pt").unlink(),
        r"speaker.pt: no such file of the ReDimNet.*IDRnD/ReDimNet",
    ),
    "truncated speaker": (lambda at: shortened(at / "speaker.pt"), "not a readable torch file"),
    "narrow speaker": (lambda at: narrower_voice(at / "speaker.pt"), "voices of 64 values, expected 192"),
}


def write_into(folder: Path, **changes: Any) -> None:
    """Another network's weights under this folder's config."""
    config = (folder / "config.json").read_text()
    write_wan(folder, **changes)
    (folder / "config.json").write_text(config)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_part_is_refused_in_one_line_and_nothing_is_written(
    parts: Path, tmp_path: Path, damage: str
) -> None:
    spoil, message = DAMAGE[damage]
    spoil(parts)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        write_codec(parts, tmp_path / "codec")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "codec").exists()


def test_the_command_line(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--video",
        str(whole / "pipeline" / "vae"),
        "--audio",
        str(whole / "ltx" / "audio_vae"),
        "--text",
        str(whole / "pipeline"),
    ]
    command = [
        "codec",
        "import",
        *given,
        "--speaker",
        str(whole / "speaker.pt"),
        "--to",
        str(tmp_path / "codec"),
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    codec_id = load_codecs(tmp_path / "codec").codec_id
    assert f"codec {codec_id}" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as left:
        main([*command[:-3], str(tmp_path / "other")])
    assert left.value.code == 2 and "give another folder" in capsys.readouterr().err
    assert main(command) == 0  # again over its own
    with pytest.raises(SystemExit):
        main([*command, "--decode-tile", "100"])
    assert "multiples of 32" in capsys.readouterr().err


def test_the_id_names_what_shapes_latents(whole: Path, parts: Path, tmp_path: Path) -> None:
    def made(**changes: Any) -> str:
        return write_codec(parts, tmp_path / "codec", dataclasses.replace(EXACT, **changes))

    def decoder() -> str:
        return load_codecs(tmp_path / "codec").decoder_id

    first, decodes = made(), {decoder()}
    assert first == write_codec(whole, tmp_path / "elsewhere")
    assert first == made(device="auto", parked=True) and {decoder()} == decodes
    assert first == made(encode_tile=0, tile_overlap=32) and {decoder()} == decodes  # of no tile at all
    assert first == made(decode_tile=64, tile_overlap=32)
    decodes.add(decoder())
    made(decode_tile=96, tile_overlap=32)
    decodes.add(decoder())
    made(text_dtype="bfloat16")
    assert len(decodes) == 3 and decoder() in decodes
    tiled = {
        made(encode_tile=64, tile_overlap=32),
        made(encode_tile=96, tile_overlap=32),
        made(encode_tile=96),
    }
    assert len({first, *tiled, made(video_dtype="bfloat16")}) == 5
    configured(parts / LTX / "vocoder" / "config.json", leaky_relu_negative_slope=0.2)
    assert made() == first
    configured(parts / VAE / "config.json", latents_mean=[0.5] * 48)
    assert made() != first


def test_a_part_is_loaded_when_it_is_used(parts: Path, tmp_path: Path) -> None:
    write_codec(parts, tmp_path / "codec")
    shutil.rmtree(parts / "pipeline" / "text_encoder")  # 11 GB that need not be at hand to decode
    codecs = load_codecs(tmp_path / "codec")
    assert codecs.text.width == TEXT_WIDTH
    assert codecs.video.decode(torch.zeros(1, 48, 1, 2, 2)).shape == (1, 1, 32, 32, 3)
    with pytest.raises(
        PartError, match=r"text_encoder/config.json: part of the codec is missing; get it from Wan-AI"
    ):
        codecs.text.encode([parse("A wall.")])


def test_files_that_change_are_noticed_and_a_touch_is_none(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_codec(parts, tmp_path / "codec")
    path, latents = parts / VAE / WEIGHTS, torch.zeros(1, 48, 1, 2, 2)
    os.utime(path, (1, 1))
    load_codecs(tmp_path / "codec").video.decode(latents)
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(PartError, match="other content than when the codec was made"):
        load_codecs(tmp_path / "codec").video.decode(latents)
    shortened(path)
    with pytest.raises(PartError, match=r"bytes, \d+ when the codec was made"):
        load_codecs(tmp_path / "codec").video.decode(latents)
    monkeypatch.setattr(weights, "digests", lambda *_: pytest.fail("an unchanged file was hashed"))
    load_codecs(tmp_path / "codec").speaker.embed(torch.randn(16_000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"devise": "cpu"}}, "devise: unknown key; did you mean 'device'"),
        ({"options": {"device": "tpu"}}, "codec device: 'tpu' is not here"),
        ({"options": {"video_dtype": "float16"}}, "video_dtype"),
        ({"options": {"video_dtype": "bfloat16"}}, "options and digests are of codec"),
        ({"parts": {}}, "not a published codec's config"),
        ({"kind": "publisht"}, "unknown codec 'publisht'; valid: 'linear', 'published'"),
    ],
)
def test_a_wrong_config_is_refused(whole: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_codec(whole, tmp_path / "codec")
    path = tmp_path / "codec" / "config.json"
    content = json.loads(path.read_text())
    options = content["options"] | change.get("options", {})
    path.write_text(json.dumps(content | change | {"options": options}))
    with pytest.raises(ValueError, match=message):
        load_codecs(tmp_path / "codec")


def test_sharded_weights(parts: Path, tmp_path: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    whole = write_codec(parts, tmp_path / "codec")
    expected = load_codecs(tmp_path / "codec").video.decode(torch.ones(1, 48, 2, 2, 2))
    network = AutoencoderKLWan.from_pretrained(parts / VAE)
    (parts / VAE / WEIGHTS).unlink()
    network.save_pretrained(parts / VAE, max_shard_size="200KB")
    assert len(list((parts / VAE).glob("*.safetensors"))) > 2
    assert write_codec(parts, tmp_path / "codec") != whole
    assert torch.equal(load_codecs(tmp_path / "codec").video.decode(torch.ones(1, 48, 2, 2, 2)), expected)


def test_encode_and_generate_end_to_end(whole: Path, tmp_path: Path) -> None:
    codec_id = write_codec(whole, tmp_path / "codec")
    generator = np.random.default_rng(0)
    sound = (0.1 * generator.standard_normal(3334)).astype(np.float32)
    frames = generator.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, 24, sound, 16_000)
    write_wav(tmp_path / "voice.wav", np.tile(sound, 5), 16_000)
    meta = {"reference_paths": ["voice.wav"]}
    rows = [
        ManifestRow(
            "a",
            tmp_path / "a.mp4",
            24.0,
            5 / 24,
            32,
            32,
            "A man says <S>seven<E>.",
            (0.0,),
            (0.2,),
            meta=meta,
        )
    ]
    write_manifest(tmp_path / "paired.jsonl", rows)
    encode_sets(
        EncodeConfig(), {"paired": tmp_path / "paired.jsonl"}, tmp_path / "codec", tmp_path / "latents"
    )
    sample = LatentStore(tmp_path / "latents" / "paired", codec_id=codec_id)[0]
    assert sample.video is not None and sample.video.shape == (48, 2, 2, 2)
    assert sample.audio is not None and sample.audio.shape == (128, 5)
    assert (
        sample.text.shape[1] == TEXT_WIDTH
        and sample.speakers.shape == (1, 192)
        and bool(sample.speakers.any())
    )

    write_model(
        tmp_path / "model",
        "debug",
        flavor("debug"),
        {"ema": debug_model().state_dict()},
        {"codec_id": codec_id},
    )
    prompt = {"data_id": "b", "prompt": "A man says <S>two<E>.", "spk_wavs": ["voice.wav"]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    sampler = SamplerConfig(solver="euler", steps=2, shift=1.0, guidance=GuidanceScales())
    config = GenerateConfig(sampler=sampler, num_frames=5, height=32, width=32, bf16=False)
    generate(config, tmp_path / "model", tmp_path / "codec", tmp_path / "prompts.jsonl", tmp_path / "out")
    clip = read_media(tmp_path / "out" / "b.mp4")
    assert clip.frames is not None and clip.frames.shape == (5, 32, 32, 3)
    import soundfile

    heard, rate = soundfile.read(tmp_path / "out" / "b.wav")
    assert (
        rate == 16_000 and heard.shape == (3200, 2) and not np.array_equal(heard[:, 0], heard[:, 1])
    )  # stereo


def test_a_text_encoder_of_another_width_than_the_models_is_refused(parts: Path, tmp_path: Path) -> None:
    write_text(parts / "pipeline", width=64)
    write_codec(parts, tmp_path / "codec")
    assert load_codecs(tmp_path / "codec").text.encode([parse("A wall.")]).states.shape[2] == 64
    write_model(tmp_path / "model", "debug", flavor("debug"), {"ema": debug_model().state_dict()}, {})
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "A wall."}\n')
    with pytest.raises(ValueError, match=r"text states are 64 wide, .*model takes 256"):
        generate(
            GenerateConfig(),
            tmp_path / "model",
            tmp_path / "codec",
            tmp_path / "prompts.jsonl",
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_what_conditions_must_not_reward(whole: Path, tmp_path: Path) -> None:
    write_codec(whole, tmp_path / "codec")
    with pytest.raises(ValueError, match="redimnet conditions the model"):
        AlignScorer(str(tmp_path / "codec"), {"sim_redimnet": 0.5}, {})


def test_a_missing_speaker_stops_the_encoding_and_rejects_no_row(parts: Path, tmp_path: Path) -> None:
    write_codec(parts, tmp_path / "codec")
    (parts / "speaker.pt").unlink()
    write_wav(
        tmp_path / "a.wav", np.random.default_rng(0).standard_normal(3200).astype(np.float32) * 0.1, 16_000
    )
    write_manifest(
        tmp_path / "heard.jsonl",
        [ManifestRow("a", tmp_path / "a.wav", 0.0, 0.2, 0, 0, "He says <S>two<E>.", (0.0,), (0.2,))],
    )
    config = EncodeConfig(max_bad_fraction=1.0, audio_only_sets=("heard",))
    with pytest.raises(PartError, match=r"speaker.pt: part of the codec is missing"):
        encode_sets(config, {"heard": tmp_path / "heard.jsonl"}, tmp_path / "codec", tmp_path / "latents")
    assert not (tmp_path / "latents" / "heard").exists()
