"""Clips by a random model: what each task costs and gives, several seeds, going on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_world import (
    QUICK,
    files_in,
    mixed_rows,
    write_debug_model,
    write_model_and_codec,
    write_prompts,
)
from model_cases import debug_model
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from pretrain.clip_files import COMMENT
from pretrain.codecs.load import load_codecs
from pretrain.files import write_json
from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales
from pretrain.generate import Spread, generate
from pretrain.generation.conditions import conditioning_of, negative_conditioning, noise_of
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import clip_jobs
from pretrain.generation.maker import ClipMaker
from pretrain.generation.order import ClipDone, ClipOrder, one_process
from pretrain.generation.request import request_id
from pretrain.media.read import read_media, read_metadata
from pretrain.media.wav_marks import marks_of_wav
from pretrain.media.write import write_wav
from pretrain.model.flops import ClipShape, forward_flops
from pretrain.owned import MARKER
from pretrain.prompt import PromptRow, read_prompts
from pretrain.sampling import SamplerConfig
from pretrain.types import Stream

ONE_STEP = dataclasses.replace(
    QUICK, sampler=SamplerConfig(solver="euler", steps=1, shift=1.0, guidance=NO_GUIDANCE)
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_and_codec(tmp_path_factory.mktemp("world"))


def rows_of(world: Path, folder: Path, *rows: dict) -> list[PromptRow]:
    shutil.copy(world / "voice.wav", folder / "voice.wav")
    return read_prompts(prompts_of(folder, *rows))


def prompts_of(folder: Path, *rows: dict) -> Path:
    whole = [{"data_id": f"r{number}", "prompt": "A wall.", **row} for number, row in enumerate(rows)]
    return write_prompts(folder / "p.jsonl", whole)


def made_by(world: Path, config: GenerateConfig = QUICK) -> ClipMaker:
    return ClipMaker.load(world / "model", world / "codec", config)


def make(world: Path, prompts: Path, out: Path, config: GenerateConfig = QUICK, **more: object) -> dict:
    return generate(config, world / "model", world / "codec", prompts, out, **more)  # type: ignore[arg-type]


def index_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_sound_alone_costs_its_own_flops_and_is_the_models_path_without_video(world, tmp_path):
    torch.manual_seed(0)
    rows = rows_of(
        world, tmp_path, {"prompt": "<S>zero<E>", "spk_wavs": ["voice.wav"], "task": "T2A", "num_frames": 49}
    )
    maker = made_by(world, ONE_STEP)
    jobs = clip_jobs(rows, ONE_STEP)
    maker.latents(jobs)  # the reference is heard once
    with FlopCounterMode(display=False) as counter:
        made = maker.latents(jobs)
    assert made.video is None and made.audio is not None
    model, codecs = debug_model(), load_codecs(world / "codec")
    conditions = conditioning_of(rows, codecs, maker.voices)
    tokens = made.audio.shape[2]
    shape = ClipShape(video=0, audio=tokens, context=conditions.text.shape[1], references=1)
    assert counter.get_total_flops() <= forward_flops(model.args, shape)
    noise = noise_of(rows, ONE_STEP, torch.device("cpu")).audio
    assert noise is not None and noise.shape[2] == tokens == round(49 / 24 * 25)
    state = Stream(noise, torch.tensor([tokens]), torch.ones(1, 1), 25.0, 6.0)
    with torch.no_grad():
        velocity = model.eval()(None, state, conditions).audio
    assert torch.equal(made.audio, noise - velocity)


def test_guided_sound_alone_has_no_direction_of_alignment(world, tmp_path):
    guided = SamplerConfig(solver="euler", steps=2, shift=1.0, guidance=GuidanceScales())
    rows = rows_of(world, tmp_path, {"task": "T2A", "num_frames": 9})
    maker, jobs = made_by(world), clip_jobs(rows, QUICK)
    with FlopCounterMode(display=False) as counter:
        maker.latents(jobs)
    audio = maker.latents(jobs).audio
    assert audio is not None
    context = load_codecs(world / "codec").text.encode([rows[0].prompt]).states.shape[1]
    one = forward_flops(debug_model().args, ClipShape(video=0, audio=audio.shape[2], context=context))
    # text's direction only: nothing is spoken in a given voice
    assert counter.get_total_flops() <= 2 * guided.steps * one


def test_each_task_writes_what_it_makes(world, tmp_path):
    rows = [{"task": "T2A"}, {"task": "T2V"}, {}]
    make(world, prompts_of(tmp_path, *rows), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".mp4", ".wav")}
    assert names == {"r0.wav", "r1.mp4", "r2.mp4", "r2.wav"}
    found = index_of(tmp_path / "out")
    assert [(row["video"], row["audio"]) for row in found] == [
        ("", "r0.wav"),
        ("r1.mp4", ""),
        ("r2.mp4", "r2.wav"),
    ]
    silent = read_media(tmp_path / "out" / "r1.mp4", want_audio=None)
    assert silent.waveform is None and silent.frames is not None and len(silent.frames) == 5


def test_a_made_order_scores_by_its_index(world, tmp_path):
    from experiments.scoring.clips import list_clips

    make(world, prompts_of(tmp_path, {"task": "T2A"}, {}), tmp_path / "out")
    assert [clip.path.name for clip in list_clips(tmp_path / "out")] == ["r0.wav", "r1.mp4"]


def test_a_server_gets_clips_of_mixed_requests_in_their_order(world, tmp_path):
    rows = rows_of(world, tmp_path, *mixed_rows(5), {"task": "T2A"}, {"task": "T2V", "num_frames": 1})
    maker = made_by(world)
    clips = maker.make(clip_jobs(rows, QUICK))
    assert [clip.job.row.data_id for clip in clips] == [row.data_id for row in rows]
    assert all(clip.reason == "" for clip in clips)
    assert clips[0].frames is not None and clips[0].frames.shape == (5, 32, 64, 3)
    assert clips[5].frames is None and clips[5].sound is not None and clips[6].sound is None
    make(world, tmp_path / "p.jsonl", tmp_path / "out")
    for clip in clips:
        kept = load_file(tmp_path / "out" / f"{clip.job.name}.safetensors")
        for name, latents in (("video", clip.video), ("audio", clip.audio)):
            assert (latents is None) == (name not in kept)
            assert latents is None or torch.equal(latents, kept[name])


def test_a_clip_of_several_seeds_is_that_of_the_seed_alone(world, tmp_path):
    prompts = prompts_of(tmp_path, {}, {"num_frames": 9})
    one = dataclasses.replace(QUICK, batch_size=1)
    make(world, prompts, tmp_path / "all", dataclasses.replace(one, seeds=(4, 7)))
    for seed in (4, 7):
        make(world, prompts, tmp_path / f"{seed}", dataclasses.replace(one, seed=seed))
        for name in ("r0", "r1"):
            kept = [
                load_file(folder)
                for folder in (
                    tmp_path / "all" / f"{name}-s{seed}.safetensors",
                    tmp_path / f"{seed}" / f"{name}.safetensors",
                )
            ]
            assert torch.equal(kept[0]["video"], kept[1]["video"])
    row = index_of(tmp_path / "all")[1]
    assert (row["data_id"], row["prompt_id"], row["seed"]) == ("r0-s7", "r0", 7)


def test_a_negative_prompt_takes_the_place_of_the_dropped_text_in_its_row_alone(world, tmp_path):
    rows = rows_of(world, tmp_path, {"negative_prompt": "noise"}, {})
    maker = made_by(world, ONE_STEP)
    negative = negative_conditioning(rows, maker.codecs)
    assert negative is not None and negative.text_kept.tolist() == [True, False]
    scale = dataclasses.replace(
        ONE_STEP.sampler, guidance=dataclasses.replace(NO_GUIDANCE, text_audio=1.0, text_video=1.0)
    )
    maker.config = dataclasses.replace(ONE_STEP, sampler=scale)
    with_it = maker.latents(clip_jobs(rows, maker.config)).video
    plain = [dataclasses.replace(row, negative=None) for row in rows]
    without = maker.latents(clip_jobs(plain, maker.config)).video
    assert with_it is not None and without is not None
    assert not torch.allclose(with_it[0], without[0]) and torch.allclose(with_it[1], without[1], atol=1e-5)
    assert negative_conditioning(plain, maker.codecs) is None


class Stopped(Exception):
    pass


def stopping_after(count: int) -> Spread:
    """One process that is gone after that many clips."""

    def run(order: ClipOrder, begin: Callable[[], None]) -> Iterator[ClipDone]:
        for number, clip in enumerate(one_process(order, begin), start=1):
            yield clip
            if number == count:
                raise Stopped

    return Spread(run)


def test_an_interrupted_call_goes_on_to_the_very_bytes_of_one_that_was_not(world, tmp_path):
    shutil.copy(world / "voice.wav", tmp_path / "voice.wav")
    prompts = write_prompts(tmp_path / "p.jsonl", mixed_rows(7))
    make(world, prompts, tmp_path / "whole")
    for count in (1, 3, 2):
        with pytest.raises(Stopped):
            make(world, prompts, tmp_path / "cut", spread=stopping_after(count))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.mp4")}
    assert 5 <= len(before) < 7
    made = make(world, prompts, tmp_path / "cut")
    assert made["clips"] == 7 and made["made"] <= 2
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.mp4")}
    kept = [name for name in before if done[name] == before[name]]
    assert len(kept) >= 5  # nothing that was noted is made again
    assert files_in(tmp_path / "cut") == files_in(tmp_path / "whole")
    assert make(world, prompts, tmp_path / "cut")["made"] == 0


def test_latents_of_a_process_that_died_while_it_decoded_are_not_made_again(world, tmp_path, monkeypatch):
    prompts = prompts_of(tmp_path, {}, {})
    with pytest.raises(Stopped):
        make(world, prompts, tmp_path / "out", spread=stopping_after(1))
    monkeypatch.setattr(ClipMaker, "latents", lambda *_: pytest.fail("sampled again"))
    assert make(world, prompts, tmp_path / "out")["made"] == 1


def test_clips_of_another_decoder_of_the_same_codec_are_others(world, tmp_path, capsys):
    prompts = prompts_of(tmp_path, {})
    shutil.copytree(world / "codec", tmp_path / "codec")
    config = json.loads((tmp_path / "codec" / "config.json").read_text())
    (tmp_path / "codec" / "config.json").write_text(json.dumps({**config, "griffin_lim_iterations": 0}))
    make(world, prompts, tmp_path / "out", ONE_STEP)
    marker, decoder_id = tmp_path / "out" / MARKER, load_codecs(world / "codec").decoder_id
    marks, row = marks_of_wav(tmp_path / "out" / "r0.wav"), index_of(tmp_path / "out")[0]
    assert (marks["decoder_id"], marks["seed"], marks["data_id"]) == (decoder_id, "0", "r0") and row[
        "seed"
    ] == 0
    assert read_metadata(tmp_path / "out" / "r0.mp4").items() >= marks.items() >= {"comment": COMMENT}.items()
    earlier = json.loads(marker.read_text())
    assert earlier["made_with"].pop("decoder") == decoder_id
    write_json(marker, {**earlier, "id": request_id(earlier["made_with"])})
    assert make(world, prompts, tmp_path / "out", ONE_STEP)["made"] == 0
    assert "did not keep its decoder_id; goes on" in capsys.readouterr().err
    make(world, prompts, tmp_path / "new", ONE_STEP)
    made = generate(ONE_STEP, world / "model", tmp_path / "codec", prompts, tmp_path / "new")
    assert made["made"] == 1 and "another decoder of the codec" in capsys.readouterr().out
    assert len({(tmp_path / name / "r0.wav").read_bytes() for name in ("out", "new")}) == 2


def test_another_request_is_refused_while_the_folder_is_unfinished(world, tmp_path):
    prompts = prompts_of(tmp_path, {}, {})
    with pytest.raises(Stopped):
        make(world, prompts, tmp_path / "out", spread=stopping_after(1))
    before = files_in(tmp_path / "out")
    write_debug_model(tmp_path / "other", world / "codec")
    state = {key: value + 1 for key, value in debug_model().state_dict().items()}
    from pretrain.model.checkpoint import read_model_folder, write_model

    described = read_model_folder(tmp_path / "other")
    write_model(tmp_path / "other", "debug", described.args, {"ema": state}, described.facts)
    with pytest.raises(ValueError, match="unfinished, and made with another model"):
        generate(QUICK, tmp_path / "other", world / "codec", prompts, tmp_path / "out")
    steps = dataclasses.replace(QUICK, sampler=dataclasses.replace(QUICK.sampler, steps=5))
    with pytest.raises(ValueError, match=r"generate\.sampler\.steps 2, asked for is 5"):
        make(world, prompts, tmp_path / "out", steps)
    with pytest.raises(ValueError, match="made with other prompts"):
        make(world, prompts_of(tmp_path, {}, {}, {}), tmp_path / "out")
    assert files_in(tmp_path / "out") == before
    make(world, prompts_of(tmp_path, {}, {}), tmp_path / "out")


def test_a_clip_that_cannot_be_made_is_its_own_reason_and_the_others_are_there(world, tmp_path, monkeypatch):
    latents = ClipMaker.latents

    def broken(self, batch, voiced=None):
        made = latents(self, batch, voiced)
        assert made.audio is not None
        for place, job in enumerate(batch):
            if job.name == "r1":
                made.audio[place] = float("nan")
        return made

    prompts = prompts_of(tmp_path, {}, {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(ClipMaker, "latents", broken)
        with pytest.raises(ValueError, match="1 of 3 clips could not be made; r1: latents that are NaN"):
            make(world, prompts, tmp_path / "out")
    assert [row["data_id"] for row in index_of(tmp_path / "out")] == ["r0", "r2"]
    assert json.loads((tmp_path / "out" / MARKER).read_text())["unfinished"]
    assert make(world, prompts, tmp_path / "out")["made"] == 1
    whole = make(world, prompts, tmp_path / "whole")
    assert whole["made"] == 3
    # the broken clip's neighbours were decoded in their batch all the same
    assert files_in(tmp_path / "out")["r0.wav"] == files_in(tmp_path / "whole")["r0.wav"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "word " * 600}, r"p\.jsonl:1 prompt: prompt of 600 text tokens; give 1 to 512"),
        ({"negative_prompt": "word " * 600}, r"p\.jsonl:1 negative_prompt: prompt of 600 text tokens"),
        ({"image_path": "bomb.png"}, r"p\.jsonl:1 image_path: .*bomb\.png: 30000x30000 pixels, at most"),
        ({"image_path": "cut.png"}, r"p\.jsonl:1 image_path: .*cut\.png"),
        (
            {"prompt": "<S>a<E>", "spk_wavs": ["long.wav"]},
            r"p\.jsonl:1 spk_wavs\[0\]: .*long\.wav: 3600 s long",
        ),
        (
            {"prompt": "<S>a<E>", "spk_wavs": ["none.wav"]},
            r"p\.jsonl:1 spk_wavs\[0\]: .*none\.wav: .*0 seconds",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_there(world, tmp_path, row, message):
    write_wav(tmp_path / "long.wav", np.zeros(3600 * 8000, np.float32), 8000)
    write_wav(tmp_path / "none.wav", np.zeros(0, np.float32), 16_000)
    bomb(tmp_path / "bomb.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=message):
        make(world, prompts_of(tmp_path, row), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def bomb(path: Path) -> None:
    """A picture of 900 megapixels in a header alone."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, data)
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_two_commands_do_not_share_a_folder(world, tmp_path):
    prompts = prompts_of(tmp_path, {})

    def run(order: ClipOrder, begin: Callable[[], None]) -> Iterator[ClipDone]:
        with pytest.raises(ValueError, match="another `nava generate` is at work here"):
            make(world, prompts, tmp_path / "out")
        yield from one_process(order, begin)

    assert make(world, prompts, tmp_path / "out", spread=Spread(run))["made"] == 1


def test_clips_go_to_a_store_one_by_one(world, tmp_path):
    from pretrain.storage import place

    prompts, out = prompts_of(tmp_path, {}, {}, {}), place("memory://bucket/generation/clips")
    with pytest.raises(Stopped):
        make(world, prompts, out, spread=stopping_after(2))
    assert {path.name for path in out.glob("*.wav")} >= {"r0.wav", "r1.wav"}
    assert make(world, prompts, out)["made"] == 1
    make(world, prompts, tmp_path / "local")
    local = files_in(tmp_path / "local")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != MARKER} == local


def test_latents_that_another_request_left_are_not_taken(world, tmp_path):
    prompts = prompts_of(tmp_path, {}, {})
    with pytest.raises(Stopped):
        make(world, prompts, tmp_path / "out", spread=stopping_after(1))
    assert (tmp_path / "out" / ".nava-parts" / "latents" / "0.safetensors").is_file()
    other = dataclasses.replace(QUICK, seed=1)
    make(world, prompts, tmp_path / "out", other, aside=True)
    make(world, prompts, tmp_path / "alone", other)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "alone")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_more_room_is_gone_on_with(world, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        prompts = write_prompts(
            tmp_path / "p.jsonl", [{"data_id": f"c{n}", "prompt": "x"} for n in range(12)]
        )
        with pytest.raises(OSError, match=r"No space left on device: .*disk/clips/") as error:
            make(world, prompts, disk / "clips")
        assert "\n" not in str(error.value)
        there = len(list((disk / "clips").glob("*.wav")))
        assert 0 < there < 12
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert 12 - there <= make(world, prompts, disk / "clips")["made"] <= 12 - there + 1
        make(world, prompts, tmp_path / "whole")
        assert files_in(disk / "clips") == files_in(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
