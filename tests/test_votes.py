import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from align_world import config, write_world
from test_align_pairs import made_clips

from experiments.pipeline.curate_prompts import PromptChoiceConfig, curate_prompts, prompt_gains
from experiments.pipeline.votes import VotesConfig, curated, vote_on_rollouts
from experiments.scoring.latents import score_store
from finetune.curation import CurationConfig
from finetune.gsb.pairs import read_clips, read_pairs
from finetune.gsb.simulated_raters import JudgeFeature, SimulatedRatersConfig
from finetune.gsb.votes import read_votes
from finetune.pair_batches import open_pairs
from finetune.prompts import read_prompt_set
from finetune.recipe import RubricConfig, StopConfig
from finetune.rollout_store import open_store, write_store
from pretrain.codecs.load import load_codecs

PANEL = SimulatedRatersConfig(
    features=(JudgeFeature("picture_noise_judge", "picture", -0.02),),
    axes=("overall", "picture"),
    noise=0.1,
    lapses=0.0,
)
CONFIG = VotesConfig(panel=PANEL, batch=7, num_processes=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    rows, clips = made_clips(folder)
    write_store(folder / "store", rows, clips, {"codec_id": load_codecs(folder / "codec").codec_id})
    return folder


def voted(world: Path, out: Path, config: VotesConfig = CONFIG):
    return vote_on_rollouts(config, world / "store", world / "codec", world, world, out)


def scores(world: Path, batch: int = 7):
    return score_store(
        open_store(world / "store"), ["picture_noise_judge"], world / "codec", world, world, batch, 1
    )


def test_votes_of_a_store_become_pairs_that_training_reads(world, tmp_path):
    summary = voted(world, tmp_path)
    assert summary == json.loads((tmp_path / "summary.json").read_text()) and summary["simulated"] is True
    votes = read_votes(tmp_path / "votes.jsonl")
    assert votes.num_simulated == len(votes.votes) == summary["votes"]
    source = open_pairs(tmp_path / "pairs.jsonl", open_store(world / "store"), 8)
    assert len(source.pairs) == summary["pairs"] == 30
    assert all(
        pair.simulated and pair.first.case_id == source.store.case(pair.first.clip_id)
        for pair in source.pairs
    )


def test_labels_follow_what_the_judges_measured(world, tmp_path):
    voted(world, tmp_path)
    noise = scores(world)
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    cleaner = [
        noise[p.second.clip_id]["picture_noise_judge"] - noise[p.first.clip_id]["picture_noise_judge"]
        for p in pairs
    ]
    assert np.corrcoef(cleaner, [pair.label("picture") or 0 for pair in pairs])[0, 1] > 0.6


def test_decoding_in_other_batches_changes_nothing(world):
    few, many = scores(world, 3), scores(world, 64)
    assert few.keys() == many.keys()
    for clip, values in few.items():
        assert values == pytest.approx(many[clip], rel=1e-4)


def test_a_share_of_the_pairs_is_chosen_and_said(world, tmp_path):
    summary = voted(world, tmp_path, dataclasses.replace(CONFIG, curation=CurationConfig(share=0.5)))
    assert summary["pairs"] == summary["curation"]["chosen"] == 15
    whole = read_pairs(tmp_path / "pairs.jsonl")
    assert curated(CurationConfig(share=1.0), whole)[0] == whole


def test_a_store_of_another_codec_is_refused(world, tmp_path):
    rows, clips = made_clips(world)
    write_store(tmp_path / "store", rows, clips, {"codec_id": "other"})
    with pytest.raises(ValueError, match="latents of codec other"):
        vote_on_rollouts(CONFIG, tmp_path / "store", world / "codec", world, world, tmp_path / "votes")
    assert not (tmp_path / "votes").exists()


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="pairs_per_case"):
        VotesConfig(pairs_per_case=0)


def test_prompts_that_earn_little_are_chosen_and_training_takes_those(world, tmp_path):
    paid = config(rubric=RubricConfig(audio={"snr_estimate_db": 1.0}, sync={}))
    one = PromptChoiceConfig(curation=CurationConfig(count=4, gain_weight=1.0), num_processes=1)
    chosen = curate_prompts(one, paid, world / "store", world / "codec", world, world, tmp_path)
    assert len(chosen["data_ids"]) == 4 and set(chosen["gains"]) == {f"p{index}" for index in range(10)}
    assert chosen["report"]["curated"]["mean_gain"] > chosen["report"]["everything"]["mean_gain"]
    recipe = config(stop=StopConfig(prompts=2))
    kept = read_prompt_set(
        world / "prompts.jsonl",
        recipe.with_phase("nft", prompts_per_round=2),
        tmp_path / "chosen.json",
    )
    held_out = read_prompt_set(world / "prompts.jsonl", recipe).held_out
    assert kept.held_out == held_out
    assert {row.data_id for row in kept.train[0]} == set(chosen["data_ids"]) - {
        row.data_id for row in held_out
    }


def test_the_clips_rewards_are_named_as_the_votes_name_them(world, tmp_path):
    voted(world, tmp_path / "votes")
    paid = config(rubric=RubricConfig(audio={"snr_estimate_db": 1.0}, sync={}))
    one = PromptChoiceConfig(curation=CurationConfig(count=4), num_processes=1)
    curate_prompts(one, paid, world / "store", world / "codec", world, world, tmp_path / "chosen")
    rows = [json.loads(line) for line in (tmp_path / "chosen/scores.jsonl").read_text().splitlines()]
    known = {(clip.model, clip.case_id): clip.sha256 for clip in read_clips(tmp_path / "votes/clips.jsonl")}
    assert {(row["model"], row["case_id"]): row["sha256"] for row in rows} == known and len(rows) == 30


def test_gains_of_several_rewards_are_weighed():
    cases = [*"aabb"]
    first, second = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0])
    found = prompt_gains({"x": first, "y": second}, cases, {"x": 3.0, "y": 1.0})
    assert found == pytest.approx({"a": 6.0, "b": 2.0})
    turned = prompt_gains({"wer_pocketsphinx": first}, cases, {"wer_pocketsphinx": 1.0})
    assert turned == pytest.approx({"a": 0.0, "b": 2.0})


def test_a_prompt_that_a_reward_does_not_apply_to_can_be_chosen_by_the_others():
    """Two cases without a voice's reference: NaN, they were never chosen."""
    cases, nan = [*"aabbccdd"], np.nan
    words = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, nan, nan])
    voice = np.array([0.0, 0.0, 1.0, 1.0, nan, nan, nan, nan])
    found = prompt_gains({"words": words, "voice": voice}, cases, {"words": 3.0, "voice": 1.0})
    far = 1 / words[:6].std()  # of the words; the voice's is 2
    assert found == pytest.approx({"a": 3 * far + 2.0, "b": 0.0, "c": 4 * far, "d": nan}, nan_ok=True)
