import dataclasses
import json
from pathlib import Path

import pytest
import torch
from align_world import align_run, config, error, metrics, run_align, write_world

from finetune.align_run import AlignRun
from finetune.gsb.pairs import PreferencePair, read_clips, write_pairs
from finetune.make_rollouts import RolloutsConfig, make_rollouts
from finetune.objectives.gsb_dpo import AxisWeights, GsbDpo, GsbDpoPhase
from finetune.pair_batches import open_pairs
from finetune.prompts import read_prompt_set
from finetune.recipe import StopConfig
from finetune.rollout import encode_prompts
from finetune.rollout_store import open_store, write_store
from finetune.types import FIRST, NO_LABEL, SECOND, TIE, Rollout
from pretrain.codecs.load import load_codecs
from pretrain.generation.conditions import reference_voices

K = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """With store/ of three clips a prompt, the third louder in its latents than the others, and votes that
    like it."""
    folder = write_world(tmp_path_factory.mktemp("world"))
    rows, clips = made_clips(folder)
    write_store(folder / "store", rows, clips, {"codec_id": load_codecs(folder / "codec").codec_id})
    write_pairs(folder / "pairs.jsonl", made_pairs(folder))
    return folder


def made_clips(folder: Path):
    codecs = load_codecs(folder / "codec")
    rows = list(read_prompt_set(folder / "prompts.jsonl", config(stop=StopConfig(prompts=0))).train[0])
    given = encode_prompts(
        rows, K, codecs, reference_voices(rows, folder / "prompts.jsonl", codecs), config()
    )
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(len(given.groups), *given.video_shape, generator=generator)
    audio = torch.randn(len(given.groups), *given.audio_shape, generator=generator)
    audio[2::K] += 0.5
    return rows, Rollout(video, audio, given.conditioning, given.groups, given.sample_ids, given.rates)


def made_pairs(folder: Path) -> list[PreferencePair]:
    clips = {clip.clip_id: clip for clip in read_clips(folder / "store")}
    pairs = []
    for clip in clips.values():
        if clip.clip_id.endswith("k0"):
            first, second, best = (clips[clip.clip_id[:-1] + str(k)] for k in range(K))
            pairs.append(
                PreferencePair(
                    first.case_id,
                    first,
                    best,
                    {"voice": (0, 1, 4), "picture": (1, 3, 1) if not pairs else (3, 1, 1)},
                    simulated=True,
                )
            )
            pairs.append(
                PreferencePair(
                    first.case_id,
                    first,
                    second,
                    {
                        "voice": (1, 2, 1),
                        "overall": (0, 3, 0) if len(pairs) == 1 else (3, 0, 2),
                        "sync": (3, 0, 0),
                    },
                    simulated=True,
                )
            )
    return pairs


def dpo(**changes) -> GsbDpoPhase:
    fields = {
        "rounds": 2,
        "pairs_per_round": 8,
        "epochs": 2,
        "steps_per_epoch": 2,
        "micro_batch": 3,
        "lr": 3e-3,
        **changes,
    }
    return GsbDpoPhase(**fields)


def prepared(world: Path, pairs: Path) -> GsbDpo:
    """The objective with the pairs of a file and the clips of the store."""
    objective = GsbDpo(dpo())
    files = dataclasses.make_dataclass("Files", ["pairs", "clips", "codec"])
    objective.prepare(files(pairs, world / "store", world / "codec"), None)
    return objective


def pair_run(world: Path, out: Path, **changes) -> AlignRun:
    run = align_run(world, out, config(("gsb_dpo",), phases={"gsb_dpo": dpo(**changes)}))
    run = dataclasses.replace(run, pairs=world / "pairs.jsonl", clips=world / "store")
    run.save()
    return run


def test_a_store_gives_back_the_clips_it_was_given(world):
    rows, clips = made_clips(world)
    store = open_store(world / "store")
    row = rows[3]
    found = store.rollout([f"{row.data_id}-k2", f"{rows[0].data_id}-k0"])
    assert torch.equal(found.video[0], clips.video[3 * K + 2]) and torch.equal(found.audio[1], clips.audio[0])
    assert torch.equal(found.groups, clips.groups[[3 * K + 2, 0]]) and torch.equal(
        found.sample_ids, clips.sample_ids[[3 * K + 2, 0]]
    )
    assert (
        torch.equal(found.conditioning.text[0], clips.conditioning.text[3 * K + 2])
        and found.rates == clips.rates
    )
    assert store.case(f"{row.data_id}-k2") == row.data_id


def test_rollouts_of_a_model_come_in_any_batch_alike(world, tmp_path):
    trained = [
        row.data_id for some in read_prompt_set(world / "prompts.jsonl", config()).train for row in some
    ]
    made = [
        RolloutsConfig(clips_per_prompt=2, batch=batch, bf16=False, sampler=config().phases["nft"].sampler)
        for batch in (6, 64)
    ]
    for index, each in enumerate(made):
        facts = make_rollouts(
            each, config(), world / "base", world / "codec", world / "prompts.jsonl", tmp_path / str(index)
        )
        assert (facts["clips"], facts["prompts"]) == (2 * len(trained), len(trained))
    few, many = (open_store(tmp_path / str(index)) for index in (0, 1))
    assert list(few.places) == list(many.places) and few.facts["checkpoint_id"]
    assert {row["case_id"] for row in few.places.values()} == set(trained)
    clips = [f"{trained[1]}-k1", f"{trained[-1]}-k0"]
    torch.testing.assert_close(few.rollout(clips).audio, many.rollout(clips).audio, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        few.rollout([f"{trained[0]}-k0"]).audio, few.rollout([f"{trained[0]}-k1"]).audio
    )


def test_votes_find_the_clips_of_a_store(world):
    clips = read_clips(world / "store")
    assert len(clips) == 30 and len({clip.sha256 for clip in clips}) == 30
    assert {clip.model for clip in clips} == {"k0", "k1", "k2"}


def test_labels_go_to_the_axis_they_are_about(world):
    objective = prepared(world, world / "pairs.jsonl")
    batch = objective.source.batch(objective.source.pairs[:2])
    assert batch.of_axis("voice").tolist() == [SECOND, TIE]
    assert batch.of_axis("picture").tolist() == [TIE, NO_LABEL]
    assert batch.of_axis("overall").tolist() == [NO_LABEL, TIE]
    assert batch.of_axis("sync").tolist() == [NO_LABEL, FIRST]  # although overall is a tie
    rates = objective.config.tie_rates
    assert rates.voice >= 0.5 and rates.picture >= 0.1 and rates.sync == 0  # at least the shares of Same
    assert objective.config.weights == AxisWeights()


def test_axes_that_are_all_ties_are_left_out_or_refused(world, tmp_path):
    flat = [
        dataclasses.replace(pair, counts={**pair.counts, "voice": (0, 3, 0)}) for pair in made_pairs(world)
    ]
    write_pairs(tmp_path / "pairs.jsonl", flat)
    assert prepared(world, tmp_path / "pairs.jsonl").config.weights == AxisWeights(voice=0.0)
    write_pairs(
        tmp_path / "flat.jsonl", [dataclasses.replace(pair, counts={"voice": (0, 3, 0)}) for pair in flat]
    )
    with pytest.raises(ValueError, match=r"flat\.jsonl: the labels of voice are all Same"):
        prepared(world, tmp_path / "flat.jsonl")


def test_ranks_take_equal_parts_of_each_step_and_all_pairs_once_a_pass(world):
    objective = prepared(world, world / "pairs.jsonl")
    whole = objective.given_batch(0, 0, 0, 1)
    parts = [objective.given_batch(0, 0, rank, 2) for rank in range(2)]
    for step in range(2):
        ids = [part.sample_ids[objective.step_rows(part, (0,))[step]].tolist() for part in parts]
        assert len(ids[0]) == len(ids[1]) == 2
        assert sorted(ids[0] + ids[1]) == sorted(
            whole.sample_ids[objective.step_rows(whole, (0,))[step]].tolist()
        )
    rounds = [objective.given_batch(0, index, 0, 1) for index in range(2)]
    keys = [
        (int(a), int(b))
        for made in rounds
        for a, b in zip(made.first.sample_ids, made.second.sample_ids, strict=True)
    ]
    assert len(set(keys)) == 16


def test_a_clip_that_is_not_stored_and_too_few_pairs_are_refused(world, tmp_path):
    store = open_store(world / "store")
    with pytest.raises(ValueError, match=r"20 pairs, but a round takes 40"):
        open_pairs(world / "pairs.jsonl", store, 40)
    lost = [
        dataclasses.replace(pair, second=dataclasses.replace(pair.second, clip_id="gone"))
        for pair in made_pairs(world)
    ]
    write_pairs(tmp_path / "pairs.jsonl", lost)
    with pytest.raises(ValueError, match="clip 'gone' is not in"):
        open_pairs(tmp_path / "pairs.jsonl", store, 8)
    with pytest.raises(FileNotFoundError, match="make the rollouts"):
        open_store(tmp_path)


@pytest.mark.distributed
def test_votes_alone_raise_what_they_like(world, tmp_path):
    run = pair_run(world, tmp_path, rounds=4)
    assert run_align(run) == [0], (run.out / "log.0").read_text()[-2000:]
    rows = metrics(run)
    assert [row.get("task") for row in rows] == [None, *["gsb_dpo"] * 4]
    assert (
        rows[-1]["gsb_dpo/accuracy_voice"] > 0.6
        and rows[-1]["gsb_dpo/margin_voice"] > rows[1]["gsb_dpo/margin_voice"]
    )
    assert rows[-1]["held_out/reward/warm"] > rows[0]["held_out/reward/warm"]
    assert json.loads((run.out / "model" / "config.json").read_text())["pairs"]


@pytest.mark.distributed
def test_two_ranks_learn_votes_as_one_does(world, tmp_path):
    from safetensors.torch import load_file

    one, two = (
        pair_run(world, tmp_path / "one", rounds=1, lr=1e-3),
        pair_run(world, tmp_path / "two", rounds=1, lr=1e-3),
    )
    assert run_align(one) == [0] and run_align(two, world_size=2) == [0, 0]
    found, expected = (load_file(run.out / "adapter" / "adapter_model.safetensors") for run in (two, one))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.distributed
def test_gsb_dpo_without_pairs_is_refused(world, tmp_path):
    run = align_run(world, tmp_path, config(("gsb_dpo",), phases={"gsb_dpo": dpo()}))
    assert run_align(run) == [2]
    assert "gsb_dpo needs preference pairs" in error(run)
