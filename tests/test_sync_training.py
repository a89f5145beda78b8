"""Training of the sync networks: the loss by hand, a network that learns and does so the same way twice, and
how separation is counted."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_hacking_search import FIRST, FRAMES, hacks, reversed_middle, search, true_clips

from experiments.pipeline.syncnet import CUTS, SyncFitConfig, fit_sync, separation
from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.data.corpus.casting import cast
from pretrain.data.corpus.record import faces_of, pictures
from pretrain.data.corpus.sound import soundtrack
from pretrain.data.corpus.talk import talk_sets
from rewards.sync.augment import augment_crops, augment_sound
from rewards.sync.crops import MouthBoxes
from rewards.sync.inference import Embedder
from rewards.sync.separation import (
    Count,
    embedded,
    measures,
    moved_cuts,
    offset_found,
    rank_correlation,
    reward_at,
    true_over_moved,
)
from rewards.sync.syncnet import MINI, SyncNet, load_syncnet
from rewards.sync.train import SyncTrainConfig, stretch_loss, stretch_similarity, train_syncnet
from rewards.sync.windows import SyncInput, to_25_fps
from rewards.types import Clip

TINY = SyncTrainConfig(steps=16, clips_per_step=3, windows=14, stretch=5)


def flicker(seed: int, num_frames: int = 40) -> SyncInput:
    """A grey square that darkens where noise is loud."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.uniform(0, 1, num_frames // 4 + 1), 4)[:num_frames]
    crops = np.full((num_frames, 32, 32, 3), 200, np.uint8)
    crops[:, 8:24, 8:24] = (200 - 180 * level)[:, None, None, None]
    sound = 0.3 * np.repeat(level, 640) * rng.standard_normal(640 * num_frames)
    return SyncInput(crops, np.pad(sound, (0, 640)).astype(np.float32))


@pytest.fixture(scope="module")
def walk() -> np.ndarray:
    """Embeddings [90, 16] that differ from window to window and are alike to their neighbours."""
    steps = np.random.default_rng(0).standard_normal((90, 16))
    return np.stack([np.convolve(column, np.ones(3) / 3, "same") for column in steps.T], axis=1)


def test_stretch_similarity_is_the_mean_of_products_along_both():
    v, a = (
        torch.randn(2, 7, 3, generator=torch.manual_seed(0)),
        torch.randn(2, 7, 3, generator=torch.manual_seed(1)),
    )
    found = stretch_similarity(v, a, 4)
    assert found.shape == (2, 4, 2, 4)
    for b, i, c, j in ((0, 0, 0, 0), (0, 3, 1, 2), (1, 1, 0, 3)):
        expected = sum(float(v[b, i + t] @ a[c, j + t]) for t in range(4)) / 4
        assert float(found[b, i, c, j]) == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_that_of_a_guess_for_equal_embeddings_and_small_for_the_right_pairing():
    same = torch.ones(3, 10, 8)
    assert float(stretch_loss(same, same, 4, 0.07)) == pytest.approx(math.log(3 * 7), abs=1e-5)
    v = torch.randn(3, 10, 64, generator=torch.manual_seed(0))
    right, moved = stretch_loss(v, v, 4, 0.07), stretch_loss(v, v.roll(2, dims=1), 4, 0.07)
    assert float(right) < 0.05 < 1.0 < float(moved)


def test_augmentation_is_one_look_for_all_frames_and_repeats_by_its_seed():
    crops = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8), 6, axis=0)
    first, again, other = (augment_crops(crops, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 6, 32, 32) and float(first.min()) >= 0 and float(first.max()) <= 255
    assert torch.equal(first, again) and not torch.equal(first, other)
    means = torch.stack(
        [augment_crops(crops, np.random.default_rng(seed)).mean(dim=(0, 2, 3)) for seed in range(20)]
    )
    assert float(means.std(dim=1).max()) < 1.0 < 8.0 < float(means.mean(dim=1).std())


def test_augmented_sound_keeps_its_course_and_changes_its_loudness():
    sound = np.sin(np.arange(8000) / 10).astype(np.float32) * 0.2
    changed = [augment_sound(sound, np.random.default_rng(seed)) for seed in range(30)]
    gains_db = [20 * np.log10(np.std(some) / np.std(sound)) for some in changed]
    assert min(gains_db) < -5 and max(gains_db) > 3
    assert all(np.corrcoef(some, sound)[0, 1] > 0.9 for some in changed)
    assert 8 <= sum(np.corrcoef(some, sound)[0, 1] < 1 - 1e-6 for some in changed) <= 22


def test_a_few_steps_lower_the_loss_and_repeat_exactly():
    clips = [flicker(seed) for seed in range(6)]
    losses: list[float] = []
    before = torch.random.get_rng_state()
    net = train_syncnet(TINY, clips, seed=3, progress=lambda _, loss: losses.append(loss))
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(losses) == TINY.steps and not net.training
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.5
    short = dataclasses.replace(TINY, steps=2)
    weights = [train_syncnet(short, clips, seed=seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_clips_that_are_too_few_or_short_and_sizes_without_sense_are_refused():
    with pytest.raises(ValueError, match="2 of 3 clips have 18 frames; a step needs 3"):
        train_syncnet(TINY, [flicker(0), flicker(1), flicker(2, num_frames=16)])
    for wrong in ({"steps": 0}, {"clips_per_step": 1}, {"stretch": 14}):
        with pytest.raises(ValueError, match="SyncTrainConfig"):
            dataclasses.replace(TINY, **wrong)
    with pytest.raises(ValueError, match="codec_share"):
        SyncFitConfig(codec_share=1.5)


def test_equal_embeddings_separate_perfectly_and_unrelated_ones_not_at_all(walk):
    cuts = moved_cuts(walk, walk, 30)
    assert cuts.rewards.shape == (2, 21) and list(cuts.moves) == list(range(-10, 11))
    assert true_over_moved(cuts) == Count(24.0, 24)
    assert offset_found(cuts) == Count(42.0, 42)
    assert rank_correlation(cuts).total / 2 > 0.6
    assert reward_at(cuts, 0).total / 2 > 1.2 > 0.3 > reward_at(cuts, 7).total / 4
    rng = np.random.default_rng(1)
    unrelated = [
        moved_cuts(rng.standard_normal((60, 16)), rng.standard_normal((60, 16)), 40) for _ in range(60)
    ]
    share = sum(true_over_moved(some).total for some in unrelated) / sum(
        true_over_moved(some).number for some in unrelated
    )
    assert 0.35 < share < 0.65
    assert (
        sum(offset_found(some).total for some in unrelated)
        / sum(offset_found(some).number for some in unrelated)
        < 0.4
    )


@settings(max_examples=15)
@given(delay=st.integers(-4, 4))
def test_a_delayed_sound_gives_the_delay_as_the_error_of_every_move(walk, delay):
    later = np.roll(walk, delay, axis=0)  # what fits picture i is sound i + delay
    cuts = moved_cuts(walk[20:80], later[20:80], 40)
    assert (np.abs(cuts.moves - delay) <= 10).any()
    assert (cuts.errors == delay).mean() > 0.95
    assert offset_found(cuts).total == (np.abs(cuts.errors) <= 1).sum()


def test_a_tie_counts_half_and_constant_faces_are_worth_nothing():
    still = np.ones((70, 4))
    cuts = moved_cuts(still, still, 45)
    assert true_over_moved(cuts) == Count(6.0, 12)
    assert reward_at(cuts, 0).total == pytest.approx(0.5 * (1 - 1), abs=1e-9)
    with pytest.raises(ValueError, match="60 and 60 windows; a cut of 45 moved by 10 wants 65"):
        moved_cuts(still[:60], still[:60], 45)


def test_cutting_embeddings_is_cutting_the_clip():
    torch.manual_seed(0)
    embedder, clip = Embedder(SyncNet(MINI).eval()), flicker(5, num_frames=60)
    ((v, a),) = embedded(embedder, [clip])
    part = SyncInput(clip.crops[20:50], clip.sound[20 * 640 : 50 * 640 + 640])
    ((cut_v, cut_a),) = embedded(embedder, [part])
    assert np.allclose(cut_v, v[20 : 20 + len(cut_v)], atol=1e-5)
    assert np.allclose(
        cut_a[1:], a[21 : 20 + len(cut_a)], atol=1e-4
    )  # the first sample has nothing before it to be filtered with


def test_intervals_count_clips_not_cuts(walk):
    numbers = separation([(walk, walk)] * 10, 21)
    assert numbers["cuts"] == 30
    assert numbers["true_over_moved"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 10}
    assert set(measures(moved_cuts(walk, walk, 21))) == set(numbers) - {"cuts"}


def test_both_networks_are_fitted_written_and_measured(tmp_path):
    counts = dict.fromkeys(
        (
            "prompts_heldout_pairs",
            "prompts_disagree",
            "prompts_dialogue",
            "prompts_camera",
            "prompts_align_train",
        ),
        0,
    )
    config = CorpusConfig(
        paired=24,
        audio_only=8,
        hq_audio=4,
        validation=4,
        talk_a=4,
        talk_b=3,
        talk_test=3,
        prompts_align_held_out=0,
        processes=1,
        **counts,
    )
    build_corpus(config, tmp_path / "corpus")
    fit_codecs(CodecConfig(max_clips=20, griffin_lim_iterations=2), tmp_path / "corpus", tmp_path / "codec")
    config = SyncFitConfig(
        train=SyncTrainConfig(steps=2, clips_per_step=3, windows=20, stretch=4), processes=1
    )
    report = fit_sync(config, tmp_path / "corpus", tmp_path / "codec", tmp_path / "syncnet")
    reward, judge = (load_syncnet(tmp_path / "syncnet" / role) for role in ("reward", "judge"))
    assert not torch.equal(*(net.state_dict()["netfclip.3.weight"] for net in (reward, judge)))
    assert (reward.provenance["codec_clips"], judge.provenance["codec_clips"]) == (2, 0)
    assert reward.provenance["manifest_sha256"] != judge.provenance["manifest_sha256"]
    for role in ("reward", "judge"):
        for source in ("real", "codec"):
            assert {length: report[role][source][length]["spearman"]["n"] for length in CUTS} == {
                "2s": 3,
                "1s": 3,
            }
    assert (tmp_path / "syncnet" / "report.json").is_file()
    (tmp_path / "corpus" / "talk_b.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"talk_b\.jsonl"):
        fit_sync(config, tmp_path / "corpus", tmp_path / "codec", tmp_path / "syncnet")


class DarknessAndLoudness:
    """A stand-in for a trained network: an angle for how dark a mouth is, one for how loud its sound."""

    args = MINI

    def lips(self, crops):
        return [_angles(1 - some[2:-2].astype(np.float64).mean(axis=(1, 2, 3)) / 255) for some in crops]

    def sound(self, windows):
        return [_angles(some[:, 0, 0].mean(axis=1)) for some in windows]


def _angles(values: np.ndarray) -> np.ndarray:
    spread = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
    return np.stack([np.cos(spread), np.sin(spread)], axis=1)


def test_hacks_change_what_they_say_and_nothing_else():
    clip, other = true_clips(2, seed=0)
    tried = hacks(clip, other, np.random.default_rng(0))
    true = tried["true"]
    assert true.crops.shape == (51, 32, 32, 3) and len(true.sound) == 51 * 640
    for name, some in tried.items():
        assert np.array_equal(some.sound, true.sound) == ("silence" not in name)
        assert np.array_equal(some.crops, true.crops) == (name in ("true", "silence"))
    assert (
        np.ptp(tried["closed mouth"].crops[:, 10:].astype(int), axis=0).max() == 0
    )  # blinks touch the upper edge
    assert tried["wide open mouth"].crops.mean() < tried["closed mouth"].crops.mean()
    assert np.abs(tried["silence"].sound).max() < 0.01
    backwards = reversed_middle(clip.openings)
    assert np.array_equal(backwards[FIRST : FIRST + FRAMES], clip.openings[FIRST : FIRST + FRAMES][::-1])
    assert np.array_equal(reversed_middle(backwards), clip.openings)


def test_the_search_climbs_from_a_closed_mouth():
    clip = true_clips(2, seed=0)[0]
    stand_in: Any = DarknessAndLoudness()
    short, longer = (
        search(clip, {"reward": stand_in, "judge": stand_in}, steps, np.random.default_rng(0))
        for steps in (1, 40)
    )
    assert longer["reward"] > short["reward"] + 0.3
    assert longer["correlation_lag_0"] > 0.6
    assert longer["reward"] == longer["judge"]


@pytest.mark.slow
def test_a_small_training_tells_true_from_moved_on_words_it_has_never_heard():
    config = CorpusConfig(talk_a=40, talk_b=0, talk_test=24)
    plans = talk_sets(config, cast(config))

    def rendered(plan, seed):
        boxes = tuple(
            (int(x0), int(y0), int(x1), int(y1))
            for x0, y0, x1, y1 in [face.mouth_box for face in faces_of(plan)]
        )
        clip = Clip(None, 16_000, pictures(plan, seed), 24.0, mouth_boxes=boxes)
        return SyncInput(to_25_fps(MouthBoxes(32).crops(clip)[0].pixels, 24.0), soundtrack(plan, seed))

    learned, held_out = (
        [rendered(plan, seed) for seed, plan in enumerate(plans[name])] for name in ("talk_a", "talk_test")
    )
    net = train_syncnet(SyncTrainConfig(steps=80), learned, seed=0)
    pairs = embedded(Embedder(net), held_out)
    two, one = (separation(pairs, CUTS[length]) for length in ("2s", "1s"))
    assert two["true_over_moved"]["low"] >= 0.95 and two["offset_within_1"]["low"] >= 0.90
    assert one["true_over_moved"]["mean"] >= 0.95 and one["offset_within_1_unmoved"]["mean"] >= 0.90
    assert (
        two["reward_at_0"]["mean"]
        > two["reward_at_2"]["mean"]
        > two["reward_at_5"]["mean"]
        > two["reward_at_10"]["mean"]
    )
