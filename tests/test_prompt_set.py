import json
from pathlib import Path

import pytest
import torch
from align_world import WORDS, config, write_mixed, write_rows, write_world
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.prompts import (
    PromptSet,
    prompts_of_round,
    read_prompt_set,
    report_left_out,
    shares_by_kind,
    shuffled,
)
from finetune.recipe import StopConfig
from pretrain.clip_kind import ClipKind, by_kind, kind_of
from pretrain.prompt import PromptRow, check_prompts, parse, read_prompts

SHORT, IMAGE, LONG = ClipKind(5, 32, 32, False), ClipKind(5, 32, 32, True), ClipKind(9, 64, 32, False)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_mixed(write_world(tmp_path_factory.mktemp("world")))


def read(world: Path, prompts: int = 24, **changes) -> PromptSet:
    made = config(stop=StopConfig(prompts=prompts), **changes)
    return read_prompt_set(world / "mixed.jsonl", made, held_out=world / "held_out.jsonl")


def test_held_out_prompts_of_a_file_take_nothing_from_training(world):
    found = read(world)
    assert [len(some) for some in found.train] == [5, 5, 5]
    assert [row.data_id for row in found.held_out] == [
        json.loads(line)["data_id"] for line in (world / "held_out.jsonl").read_text().splitlines()
    ]
    assert [row.data_id for row in read(world, 3).held_out] == ["short5", "short6", "image5"]
    assert read(world, 0).held_out == ()


def test_rounds_are_of_one_kind_and_all_kinds_come(world):
    found, made = read(world), config()
    kinds = []
    for index in range(12):
        rows = prompts_of_round(found, made, 4, index)
        assert len({row.data_id for row in rows}) == 4
        kinds.append({kind_of(row, made) for row in rows})
    assert all(len(some) == 1 for some in kinds)
    assert set().union(*kinds) == {SHORT, IMAGE, LONG}


def test_kinds_with_fewer_prompts_than_a_round_are_reported(world, capsys):
    found = read(world)
    assert found.left_out == ((ClipKind(5, 32, 64, False), 1),)
    report_left_out(found, world / "mixed.jsonl")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "mixed.jsonl: 1 prompts of 5 frames of 64x32 pixels without a first frame are fewer" in said


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"data_id": "image0"}, r"other\.jsonl:1 data_id: 'image0' is also at .*mixed\.jsonl:6"),
        (
            {"prompt": "A short man says <S>two<E>.", "spk_wavs": ["voice.wav"]},
            r"other\.jsonl:1 prompt: the same prompt is at .*mixed\.jsonl:2",
        ),
    ],
)
def test_a_prompt_in_both_files_is_refused(world, row, says):
    other = write_rows(world / "other.jsonl", [{"prompt": "Somebody.", **row}])
    with pytest.raises(ValueError, match=says) as raised:
        read_prompt_set(world / "mixed.jsonl", config(), held_out=other)
    assert "\n" not in str(raised.value)


COPIES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([5, 9])), min_size=4, max_size=24)


@settings(deadline=None, max_examples=40)
@given(COPIES, st.integers(0, 4))
def test_no_prompt_that_is_drawn_is_trained_on_under_another_name(tmp_path_factory, copies, number):
    rows = [
        {"prompt": f"A man says <S>{WORDS[word]}<E>.", "data_id": f"p{index}", "num_frames": frames}
        for index, (word, frames) in enumerate(copies)
    ]
    path = write_rows(tmp_path_factory.getbasetemp() / "copies.jsonl", rows)
    made = config(stop=StopConfig(prompts=number), phase={"prompts_per_round": 1})
    try:
        found = read_prompt_set(path, made)
    except ValueError as error:
        assert "0 prompts of one kind" in str(error) or f"stop.prompts is {number}" in str(error)
        return
    aside = {row.prompt.text for row in found.held_out}
    trained = [row for some in found.train for row in some]
    assert len(found.held_out) == number and not aside & {row.prompt.text for row in trained}
    assert len(rows) == len(trained) + number + found.repeated
    assert found.repeated == sum(row["prompt"] in aside for row in rows) - number


@pytest.mark.parametrize("number", [0, 2, 5])
def test_where_no_prompt_is_given_twice_the_draw_is_the_first_of_the_shuffled_ones(world, number):
    made = config(stop=StopConfig(prompts=number), phase={"prompts_per_round": 2})
    found = read_prompt_set(world / "mixed.jsonl", made)
    kinds = by_kind(shuffled(read_prompts(world / "mixed.jsonl"), made.seed, "prompts"), made)
    first = max(kinds.values(), key=len)
    assert list(found.held_out) == first[:number] and found.repeated == 0
    assert sum(map(len, found.train)) == 15 - number


def test_one_prompt_under_many_names_is_not_both_held_out_and_trained_on(tmp_path, capsys):
    rows = [{"prompt": "A man says <S>one<E>.", "data_id": f"p{index}"} for index in range(10)]
    path = write_rows(tmp_path / "same.jsonl", rows)
    with pytest.raises(ValueError, match=r"0 prompts .* beside 2 held out and 8 that ask for the same"):
        read_prompt_set(path, config())
    report_left_out(PromptSet((), (), repeated=8), path)
    assert "same.jsonl: 8 prompts ask for the same as a held-out prompt" in capsys.readouterr().err


def test_other_voices_or_first_frames_make_another_prompt(world):
    rows = [
        {"prompt": "A short man says <S>two<E>.", "data_id": "mute"},
        {"prompt": "A image man says <S>one<E>.", "data_id": "face", "image_path": "face5.png"},
    ]
    other = write_rows(world / "others.jsonl", rows)
    assert len(read_prompt_set(world / "mixed.jsonl", config(), held_out=other).held_out) == 2


def test_a_first_frame_of_another_size_is_refused_with_its_row(world):
    rows = [{"prompt": "A man."}, {"prompt": "A wide man.", "image_path": "face0.png", "width": 64}]
    path = write_rows(world / "misshapen.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"misshapen\.jsonl:2 image_path: .*face0\.png has 32x32 pixels; .*64x32"
    ):
        read_prompt_set(path, config())
    write_rows(path, [{"prompt": "A man.", "image_path": "gone.png"}])
    with pytest.raises(FileNotFoundError, match=r"misshapen\.jsonl:1: .*gone\.png does not exist"):
        read_prompt_set(path, config())
    (world / "broken.png").write_bytes(b"no picture")
    write_rows(path, [{"prompt": "A man.", "image_path": "broken.png"}])
    with pytest.raises(ValueError, match=r"misshapen\.jsonl:1 image_path: .*broken\.png"):
        read_prompt_set(path, config())


@pytest.mark.parametrize("value", [33, 0, -32, 16, 64.0, "64", True])
def test_sizes_are_multiples_of_two_latents(tmp_path, value):
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": "A man."}, {"prompt": "A man.", "height": value}])
    errors = check_prompts(path)["errors"]
    assert [(error["line"], error["field"]) for error in errors] == [(2, "height")]
    assert "multiple of 32 pixels" in errors[0]["message"]


def test_sizes_of_a_row_go_before_those_of_the_config(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": "A man.", "width": 96, "num_frames": 13}])
    (row,) = read_prompts(path)
    kind = kind_of(row, config())
    assert kind == ClipKind(13, 32, 96, False)
    assert kind.video_shape == (48, 4, 2, 6) and kind.audio_shape(24.0) == (128, 14)
    assert row.where == f"{path}:1"


def row_of(name: str, num_frames: int) -> PromptRow:
    return PromptRow(parse("A man."), None, (), num_frames, name)


@given(st.lists(st.sampled_from([5, 9, 13]), min_size=1, max_size=30), st.integers(1, 5))
def test_ranks_make_equally_many_clips_of_each_kind_and_own_each_prompt_once(lengths, world_size):
    rows = [row_of(f"p{index}", length) for index, length in enumerate(lengths)]
    shares = [shares_by_kind(rows, config(), rank, world_size) for rank in range(world_size)]
    assert len({tuple(len(part.rows) for part in parts) for parts in shares}) == 1
    assert all(len(by_kind(part.rows, config())) == 1 for parts in shares for part in parts)
    owned = [row.data_id for parts in shares for part in parts for row in part.own]
    assert sorted(owned) == sorted(row.data_id for row in rows)
    padding = sum(len(part.rows) - part.count for parts in shares for part in parts)
    assert padding < world_size * len(set(lengths))


def test_one_kind_that_divides_is_shared_in_order():
    rows = [row_of(f"p{index}", 5) for index in range(6)]
    shares = [shares_by_kind(rows, config(), rank, 2)[0] for rank in (0, 1)]
    assert [*shares[0].own, *shares[1].own] == rows and shares[0].count == shares[1].count == 3


def test_a_store_keeps_each_kind_and_its_first_frames(world, tmp_path):
    from finetune.make_rollouts import RolloutsConfig, make_rollouts
    from finetune.rollout_store import open_store

    made = RolloutsConfig(clips_per_prompt=2, batch=6, bf16=False, sampler=config().phases["nft"].sampler)
    sizes = config(stop=StopConfig(prompts=0))
    facts = make_rollouts(made, sizes, world / "base", world / "codec", world / "mixed.jsonl", tmp_path / "s")
    assert (facts["clips"], facts["prompts"]) == (30, 15)
    store = open_store(tmp_path / "s")
    kinds = {some[0].rstrip("01234-k"): some for some in store.by_kind()}
    assert {name: len(clips) for name, clips in kinds.items()} == {"short": 10, "image": 10, "long": 10}
    shapes = {"short": (48, 2, 2, 2), "image": (48, 2, 2, 2), "long": (48, 3, 4, 2)}
    for name, clips in kinds.items():
        found = store.rollout(clips)
        assert found.video.shape[1:] == shapes[name]
        assert found.first_frame.tolist() == [name == "image"] * 10
        assert store.places[clips[0]].get("image_path", "").endswith(".png") == (name == "image")
    image = store.rollout([kinds["image"][0], kinds["image"][1]])
    assert torch.equal(image.video[0, :, 0], image.video[1, :, 0])
    assert not torch.equal(image.video[0, :, 1], image.video[1, :, 1])
    with pytest.raises(ValueError, match="clips of 2 kinds"):
        store.rollout([kinds["image"][0], kinds["short"][0]])
