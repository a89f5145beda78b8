"""`nava export diffusers`: a folder that DiffusionPipeline loads; its clips are those of `nava generate`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_world import QUICK, write_model_and_codec, write_prompts
from PIL import Image
from safetensors.torch import load_file

from experiments.commands.convert import export_diffusers
from pretrain.convert.diffusers_folder import PipelineExport, export_pipeline
from pretrain.flow.guidance import GuidanceScales
from pretrain.generate import generate
from pretrain.media.read import read_media
from pretrain.sampling import SamplerConfig

GUIDED = replace(
    QUICK,
    sampler=SamplerConfig(
        solver="unipc", steps=3, shift=5.0, guidance=GuidanceScales(text_audio=2.0, timbre_audio=1.5)
    ),
)
ROWS = [
    {"data_id": "a", "prompt": "A man says: <S>zero<E>.", "seed": 3, "spk_wavs": ["voice.wav"]},
    {"data_id": "b", "prompt": "A woman says: <S>one<E>.", "seed": 5, "spk_wavs": ["voice.wav"]},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model with its codec, a voice, a first frame, and the exported folder in small shards."""
    folder = write_model_and_codec(tmp_path_factory.mktemp("world"))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / "first.png")
    small = PipelineExport(max_bytes=200_000)
    export_pipeline(small, folder / "model", folder / "codec", GUIDED, folder / "pipeline")
    return folder


@pytest.fixture
def load(world, tmp_path_factory, monkeypatch):
    """The folder as a pipeline; code that diffusers copies goes to a folder of the test's."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    cache = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(cache))

    def pipeline(**options):
        pipe = DiffusionPipeline.from_pretrained(world / "pipeline", trust_remote_code=True, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return pipeline


def generated(world: Path, rows, config, out: Path) -> list[dict[str, torch.Tensor]]:
    threads = torch.get_num_threads()
    try:
        generate(config, world / "model", world / "codec", write_prompts(world / "p.jsonl", rows), out)
    finally:
        torch.set_num_threads(threads)
    return [load_file(out / f"{row['data_id']}.safetensors") for row in rows]


def same(found, wanted) -> None:
    for (video, audio), tensors in zip(found.latents, wanted, strict=True):
        made = {name: one for name, one in (("video", video), ("audio", audio)) if one is not None}
        assert made.keys() == tensors.keys()
        assert all(torch.equal(made[name], tensors[name]) for name in made)


def test_the_folder_is_as_diffusers_lays_it_out(world):
    folder, inner = world / "pipeline", world / "pipeline" / "transformer"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "NavaPipeline"]
    assert index["transformer"] == ["nava_transformer", "NavaTransformerModel"]
    shards = sorted(inner.glob("diffusion_pytorch_model-*-of-*.safetensors"))
    weights = json.loads((inner / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(shards) > 1 and {path.name for path in shards} == set(weights["weight_map"].values())
    assert sum(path.stat().st_size for path in shards) >= weights["metadata"]["total_size"]
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))


@pytest.mark.parametrize("bf16", [False, True])
def test_latents_are_those_of_generate(world, load, bf16, tmp_path):
    wanted = generated(world, ROWS, replace(GUIDED, bf16=bf16), tmp_path / "clips")
    pipe = load(dtype=torch.bfloat16) if bf16 else load()
    torch.set_num_threads(1)
    made = pipe(
        [row["prompt"] for row in ROWS],
        references=[[world / "voice.wav"], [str(world / "voice.wav")]],
        seed=[3, 5],
        names=["a", "b"],
    )
    same(made, wanted)
    assert made.frames[0].shape == (5, 32, 64, 3) and made.frames[0].dtype == np.uint8
    sound = read_media(tmp_path / "clips" / "a.wav", want_video=False).waveform
    assert made.audio[0].shape[-1] / made.sampling_rate == pytest.approx(5 / 24, abs=0.05)
    assert sound is not None and np.corrcoef(sound.ravel(), made.audio[0].mean(0)[: sound.size])[0, 1] > 0.99


def test_first_frames_lengths_guidance_and_sound_alone(world, load, tmp_path):
    pipe = load()
    torch.set_num_threads(1)
    row = {"data_id": "f", "prompt": "A man.", "image_path": "first.png", "num_frames": 9}
    scales = replace(GUIDED.sampler.guidance, text_video=0.0, align_video=1.0)
    config = replace(GUIDED, seed=7, sampler=replace(GUIDED.sampler, guidance=scales))
    wanted = generated(world, [row], config, tmp_path / "frames")
    call = {"num_frames": 9, "guidance": {"text_video": 0.0, "align_video": 1.0}, "seed": 7, "names": ["f"]}
    same(pipe("A man.", image=Image.open(world / "first.png"), **call), wanted)
    same(pipe("A man.", image=world / "first.png", output_type="latent", **call), wanted)
    alone = generated(world, [{**ROWS[0], "task": "T2A"}], GUIDED, tmp_path / "sound")
    samples = read_media(world / "voice.wav", want_video=False).waveform
    made = pipe(ROWS[0]["prompt"], references=[samples], task="T2A", seed=3, names=["a"])
    same(made, alone)
    assert made.frames == [None]


def test_a_generator_draws_the_seeds(load):
    pipe = load()
    first, again, other = (
        pipe(
            "A man.",
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=1,
            output_type="latent",
        )
        for seed in (1, 1, 2)
    )
    pictures = [made.latents[0][0] for made in (first, again, other)]
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    shown = pipe("A man.", seed=1, num_inference_steps=1, output_type="pil", return_dict=False)
    assert shown[0][0][0].size == (64, 32)


def test_wrong_calls_are_one_line(load, world):
    pipe = load()
    for message, call in (
        ("prompt 1 prompt: <S> at character", {"prompt": "A man: <S>hello"}),
        ("unknown scale 'text'", {"prompt": "A.", "guidance": {"text": 1.0}}),
        (
            "references: give a list of voices for each of the 2 prompts",
            {"prompt": ["A.", "B."], "references": ["v"]},
        ),
        ("seed: 1 for 2 prompts", {"prompt": ["A.", "B."], "seed": [1]}),
        ("give one of them", {"prompt": "A.", "seed": 1, "generator": torch.Generator()}),
        ("no such file", {"prompt": "A <S>b<E>.", "references": ["nowhere.wav"]}),
        ("output_type: expected", {"prompt": "A.", "output_type": "mp4"}),
        ("expected mono samples", {"prompt": "A <S>b<E>.", "references": [np.zeros((2, 100))]}),
        ("num_frames", {"prompt": "A.", "num_frames": 4}),
    ):
        with pytest.raises((ValueError, OSError), match=message) as found:
            pipe(**call)
        assert "\n" not in str(found.value)


def test_the_command_replaces_its_own_folders_only(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {"model": world / "model", "codec": world / "codec", "to": tmp_path / "d"}
    export_diffusers(**given, shard_gib=0.001)
    said = capsys.readouterr().out
    assert "-of-" in said and "MiB" in said and "the pipeline is in" in said
    settings = json.loads((tmp_path / "d" / "model_index.json").read_text())["settings"]
    assert settings["num_frames"] == 25  # the recipe's
    export_diffusers(**given, dtype="bf16", settings=("generate.num_frames=9",), as_json=True)
    files = json.loads(
        capsys.readouterr().out[:-1].rsplit('{\n "checkpoint_id', 1)[-1].join(['{\n "checkpoint_id', ""])
    )["files"]
    assert list(files) == ["diffusion_pytorch_model.safetensors"]
    assert json.loads((tmp_path / "d" / "model_index.json").read_text())["settings"]["num_frames"] == 9
    (tmp_path / "d" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"'mine\.txt', which `nava export diffusers` did not make"):
        export_diffusers(**given)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        export_diffusers(model=tmp_path, codec=world / "codec", to=tmp_path / "e")
    with pytest.raises(ValueError, match=r"generate\.quantisation=int8: a pipeline computes in the dtype"):
        export_diffusers(
            **{**given, "to": tmp_path / "e"},
            settings=("generate.bf16=true", "generate.quantisation=int8"),
        )
    with pytest.raises(ValueError, match="--shard-gib"):
        export_diffusers(**given, shard_gib=0.0)
    assert not (tmp_path / "e").exists()
