"""Four-second talking clips: no word is in two sets, mouths follow all words, and the other sets do not
change for them."""

import dataclasses
import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest

from pretrain.data.corpus.bank import SAMPLE_RATE_HZ, load_bank
from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.data.corpus.casting import cast
from pretrain.data.corpus.plan import FPS, TALK_FRAMES
from pretrain.data.corpus.record import faces_of, pictures
from pretrain.data.corpus.script import prompt_sets, training_sets
from pretrain.data.corpus.sound import loudness_per_frame, num_samples, spoken, word_duration_s
from pretrain.data.corpus.talk import talk_sets, talk_words
from pretrain.data.manifest import read_manifest
from pretrain.media.read import read_media
from pretrain.prompt import parse

FULL = CorpusConfig()
SMALL = CorpusConfig(
    paired=24,
    audio_only=12,
    hq_audio=4,
    validation=6,
    prompts_heldout_pairs=8,
    prompts_disagree=4,
    prompts_dialogue=2,
    prompts_camera=4,
    prompts_align_train=8,
    prompts_align_held_out=8,
    talk_a=3,
    talk_b=2,
    talk_test=2,
)
# sha256 of the manifests and prompts of SMALL, as they are without any talking clip
OTHER_SETS = "f2727fb342fd1974b5fdfd00dab9ba9074fe5579b480c690d2e4e1f4cb67fef5"


@pytest.fixture(scope="module")
def sets():
    return talk_sets(FULL, cast(FULL))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("talk") / "corpus"
    return out, build_corpus(SMALL, out)


def test_the_sets_share_no_word_and_say_the_whole_bank_but_held_out_pairs(sets):
    words = talk_words(FULL)
    assert sorted(itertools.chain(*words.values())) == sorted(load_bank().words)
    held_out = set(cast(FULL).held_out)
    for name, plans in sets.items():
        said = Counter((turn.word, turn.voice) for plan in plans for turn in plan.turns)
        assert {word for word, _ in said} == set(words[name])
        assert not held_out & set(said)
        takes = {(turn.word, turn.voice, turn.take) for plan in plans for turn in plan.turns}
        assert len(takes) > 0.8 * sum(len(load_bank().utterances[pair]) for pair in said)


def test_every_voice_comes_from_every_character_before_every_wall(sets):
    for plans in sets.values():
        assert len({(plan.turns[0].voice, plan.turns[0].character) for plan in plans}) == 16
        assert len({plan.background for plan in plans}) == 6
        assert all(len({(turn.voice, turn.character) for turn in plan.turns}) == 1 for plan in plans)
        scales = [plan.place[2] for plan in plans]
        assert min(scales) < 0.76 and max(scales) > 1.09
        assert len({plan.place for plan in plans}) == len(plans)


def test_words_follow_each_other_with_pauses_of_many_lengths(sets):
    pauses = []
    for plan in itertools.chain(*sets.values()):
        ends = [turn.onset_s + word_duration_s(turn) for turn in plan.turns]
        assert spoken(plan.turns[-1], num_samples(TALK_FRAMES)).any() and ends[-1] < TALK_FRAMES / FPS
        assert len(plan.turns) >= 3
        pauses += [turn.onset_s - end for turn, end in zip(plan.turns[1:], ends[:-1], strict=True)]
        assert [span.text for span in parse(plan.text).spans] == [turn.word for turn in plan.turns]
    assert min(pauses) >= 0.06 - 1e-9
    assert np.quantile(pauses, 0.1) < 0.15 and np.quantile(pauses, 0.9) > 0.55


def test_one_mouth_follows_all_words_and_the_eyes_blink(sets):
    blinking = 0
    for plan in sets["talk_test"][:12]:
        frames, (face,) = pictures(plan, seed=1), faces_of(plan)
        assert frames.shape == (TALK_FRAMES, 64, 64, 3)
        sound = np.sum([spoken(turn, num_samples(TALK_FRAMES)) for turn in plan.turns], axis=0)
        x0, y0, x1, y1 = face.mouth_box
        assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
        darkness = 255.0 - frames[:, y0:y1, x0:x1].astype(np.float64).mean(axis=(1, 2, 3))
        assert np.corrcoef(loudness_per_frame(sound, TALK_FRAMES), darkness)[0, 1] > 0.9
        frames[:, y0:y1, x0:x1] = 0
        blinking += bool((frames != frames[:1]).any())
    assert blinking >= 8


def test_a_longer_set_begins_alike_and_another_seed_splits_the_words_differently(sets):
    longer = dataclasses.replace(FULL, talk_a=FULL.talk_a + 5)
    assert talk_sets(longer, cast(longer))["talk_a"][: FULL.talk_a] == sets["talk_a"]
    assert talk_words(dataclasses.replace(FULL, seed=1)) != talk_words(FULL)


def test_written_clips_are_rows_of_the_public_format(corpus):
    out, summary = corpus
    for name, count in (("talk_a", 3), ("talk_b", 2), ("talk_test", 2)):
        rows, rejected = read_manifest(out / f"{name}.jsonl")
        assert (len(rows), rejected) == (count, [])
        assert summary["sets"][name]["rows"] == count
        for row in rows:
            assert len(row.meta["mouth_boxes"]) == 1 and row.meta["kind"] == "talk"
            assert len(row.speech_start_s) == len(row.meta["words"])
            media = read_media(row.data_path)
            assert media.frames is not None and media.waveform is not None
            assert media.frames.shape == (TALK_FRAMES, 64, 64, 3)
            assert abs(len(media.waveform) - 101 * 640) <= 1024
            assert row.duration_s > 4.0 and len(media.waveform) / SAMPLE_RATE_HZ > 4.0


def test_the_other_sets_are_what_they_are_without_talking_clips(corpus, sets):
    out, _ = corpus
    digest = hashlib.sha256()
    for name in ("paired", "audio_only", "hq_audio", "validation"):
        digest.update((out / f"{name}.jsonl").read_bytes())
    for path in sorted((out / "prompts").glob("*.jsonl")):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == OTHER_SETS
    casting = cast(FULL)
    others = training_sets(FULL, casting)
    texts = {
        plan.text
        for plans in (*others.values(), *prompt_sets(FULL, casting, others["validation"]).values())
        for plan in plans
    }
    assert not texts & {plan.text for plans in sets.values() for plan in plans}
