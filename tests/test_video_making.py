"""What a worker makes of a batch, with a small random model: the clips of `nava generate`, reasons apart."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from video_model import shared_model

from orchestration.generation_service.fields import read_fields
from orchestration.generation_service.making import (
    BatchMaking,
    BatchWatch,
    MakeTask,
    ModelReplaced,
    ServedModel,
)
from orchestration.generation_service.offer import REFERENCE_FILE, Offer
from pretrain.flow.guidance import GuidanceScales
from pretrain.generate import generate
from pretrain.generation.config import GenerateConfig
from pretrain.media.read import read_media, read_metadata
from pretrain.media.wav_marks import marks_of_wav
from pretrain.media.write import write_wav
from pretrain.sampling import SamplerConfig

CONFIG = GenerateConfig(
    sampler=SamplerConfig(solver="euler", steps=2, shift=1.0, guidance=GuidanceScales()),
    batch_size=4,
    bf16=False,
    num_frames=5,
)
OFFER = Offer(name="debug", config=CONFIG, adapters=("look",))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shared_model(tmp_path_factory.getbasetemp())


@pytest.fixture
def making(made):
    served = ServedModel(
        model=made / "model", codec=made / "codec", config=CONFIG, adapters={"look": made / "adapter"}
    )
    return BatchMaking(served)


def task(folder, name: str, voices=(), **fields) -> MakeTask:
    request, _ = read_fields(json.dumps(fields).encode(), {}, 50_000)
    wanted = OFFER.wanted(request, False, set(voices)).to_json()
    (folder / name).mkdir(exist_ok=True)
    return MakeTask(name=name, wanted=wanted, inputs=folder / name, files=folder / f"{name}-1")


def frames_of(path) -> np.ndarray:
    frames = read_media(path, want_audio=False).frames
    assert frames is not None
    return frames.astype(float)


def test_the_clips_are_those_of_nava_generate(made, making, tmp_path):
    prompt, voice = "A man says <S>zero<E>.", made / "voice.wav"
    rows = [{"data_id": "a", "prompt": prompt, "spk_wavs": [str(voice)], "seed": 7}]
    (tmp_path / "p.jsonl").write_text(json.dumps(rows[0]) + "\n")
    generate(CONFIG, made / "model", made / "codec", tmp_path / "p.jsonl", tmp_path / "out")
    asked = task(tmp_path, "one", (0,), prompt=prompt, seed=7, data_id="a")
    other = task(tmp_path, "two", prompt=prompt, seed=8)
    (asked.inputs / REFERENCE_FILE.format(0)).write_bytes(voice.read_bytes())
    batch = making.make([asked, other])
    assert batch.outcome == "made" and [clip.reason for clip in batch.clips] == ["", ""]
    ours, theirs = batch.clips[0].files["video"], tmp_path / "out" / "a.mp4"
    assert np.abs(frames_of(ours) - frames_of(theirs)).mean() < 0.5
    assert np.abs(frames_of(batch.clips[1].files["video"]) - frames_of(theirs)).mean() > 1.0
    tags = read_metadata(ours)
    assert tags["seed"] == "7" and tags["data_id"] == "a" and "generated" in tags["comment"]
    marks = marks_of_wav(batch.clips[0].files["audio"])
    assert marks["checkpoint_id"] == tags["checkpoint_id"] and marks["seed"] == "7" and len(marks) >= 6
    assert making.progress() == pytest.approx(0.5)  # the last of two steps was begun


def test_what_a_codec_does_not_take_is_the_reason_of_that_clip_alone(made, making, tmp_path):
    broken = task(tmp_path, "broken", (0,), prompt="Says <S>zero<E>.")
    (broken.inputs / REFERENCE_FILE.format(0)).write_bytes(b"RIFF no sound")
    silent = task(tmp_path, "missing", (0,), prompt="Says <S>zero<E>.")
    write_wav(tmp_path / "unused.wav", np.zeros(1600), 16_000)
    good = task(tmp_path, "good", prompt="A ball.")
    batch = making.make([broken, good, silent])
    first, second, third = batch.clips
    assert batch.outcome == "made" and set(second.files) == {"video", "audio"}
    assert first.reason and third.reason and str(tmp_path) not in first.reason + third.reason


def test_tasks_and_adapters(made, making, tmp_path):
    sound = making.make([task(tmp_path, "sound", prompt="Rain.", task="T2A", seed=1)])
    assert set(sound.clips[0].files) == {"audio"}
    plain = making.make([task(tmp_path, "plain", prompt="A ball.", seed=1)])
    changed = making.make([task(tmp_path, "changed", prompt="A ball.", seed=1, adapters="look")])
    again = making.make([task(tmp_path, "again", prompt="A ball.", seed=1, adapters="look=0")])
    first, other, same = (frames_of(one.clips[0].files["video"]) for one in (plain, changed, again))
    assert np.abs(first - other).mean() > 0.1 and np.array_equal(first, same)
    assert len(making._makers) == 1  # a worker keeps as many as it is told


def test_a_batch_that_nobody_wants_ends_at_its_next_step(made, making, tmp_path):
    making.load()
    watch = BatchWatch(steps=2)
    assert watch.share == 0.0
    many = task(tmp_path, "long", prompt="A ball.", steps=200)
    done = []
    thread = threading.Thread(target=lambda: done.append(making.make([many])))
    thread.start()
    while making.progress() == 0.0 and thread.is_alive():
        thread.join(0.01)
    making.drop()
    thread.join(60)
    assert done[0].outcome == "dropped" and making.progress() < 1.0
    assert not list(tmp_path.glob("long-1*"))


def test_a_full_disk_is_no_fault_of_the_clips(made, making, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.media.write.write_mp4", full)
    assert making.make([task(tmp_path, "a", prompt="A ball.")]).outcome == "disk"


def test_a_model_that_does_not_load_is_one_line(made, tmp_path):
    served = ServedModel(model=tmp_path, codec=made / "codec", config=CONFIG)
    with pytest.raises((ValueError, FileNotFoundError)) as failed:
        BatchMaking(served).load()
    assert "\n" not in str(failed.value)


def test_voices_of_one_batch_are_forgotten(made, making, tmp_path):
    asked = task(tmp_path, "one", (0,), prompt="Says <S>zero<E>.")
    (asked.inputs / REFERENCE_FILE.format(0)).write_bytes((made / "voice.wav").read_bytes())
    making.make([asked])
    assert all(not maker.voices for maker in making._makers.values())
    assert dataclasses.asdict(CONFIG)["batch_size"] == 4


def test_a_model_that_was_replaced_in_its_folder_makes_nothing(made, making):
    served = dataclasses.replace(making.served, checkpoint_id="that of the start")
    with pytest.raises(ValueError, match="the service started with that of the start") as told:
        BatchMaking(served).load()
    assert "\n" not in str(told.value)
    other = BatchMaking(dataclasses.replace(making.served, adapter_ids={"look": "another"}))
    with pytest.raises(ModelReplaced, match="another"):
        other._maker({"look": 1.0})
    with pytest.raises(ValueError, match="adapter 'gone' is not served"):
        making._maker({"gone": 1.0})


def test_scales_of_adapters_are_marked_whole():
    from finetune.adapters import _exact

    given = (1.0, 0.8, -2.0, 0.12345671, 0.12345674, 1e-05)
    assert [_exact(scale) for scale in given] == ["1", "0.8", "-2", "0.12345671", "0.12345674", "1e-05"]
