"""The talking-face corpus: what is said, what is seen, what is never trained, and that it is the same every
time."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.corpus.bank import SAMPLE_RATE_HZ, load_bank
from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.data.corpus.cast import CHARACTER_BY_NAME
from pretrain.data.corpus.casting import cast
from pretrain.data.corpus.plan import ClipPlan, SoundEvent
from pretrain.data.corpus.record import faces_of, moving_boxes, pictures
from pretrain.data.corpus.render import SINGLE, Face, render_faces
from pretrain.data.corpus.script import prompt_sets, training_sets
from pretrain.data.corpus.sound import event_sound, loudness_per_frame, num_samples, soundtrack, spoken
from pretrain.data.manifest import read_manifest
from pretrain.media.read import read_media
from pretrain.prompt import check_prompts, parse

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
    talk_a=0,
    talk_b=0,
    talk_test=0,
)


@pytest.fixture(scope="module")
def plans():
    sets = training_sets(FULL, cast(FULL))
    return sets, prompt_sets(FULL, cast(FULL), sets["validation"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    return out, build_corpus(SMALL, out)


def _darkness(frames, box):
    x0, y0, x1, y1 = box
    return 255.0 - frames[:, y0:y1, x0:x1].astype(np.float64).mean(axis=(1, 2, 3))


def test_bank_has_every_word_of_every_voice_and_stays_short():
    bank = load_bank()
    assert (len(bank.words), len(bank.voices)) == (20, 4)
    takes = [take for word in bank.words for voice in bank.voices for take in bank.utterances[word, voice]]
    assert len(takes) == 20 * 4 * 3
    assert max(len(take.waveform) for take in takes) <= 0.63 * SAMPLE_RATE_HZ
    loudness = [np.sqrt(np.mean(take.waveform**2)) for take in takes]
    assert max(loudness) < 1.05 * min(loudness)


def test_mouths_follow_the_loudness_of_their_own_speaker(plans):
    for plan in [plan for plan in plans[0]["paired"] if plan.kind in ("speech", "dialogue")][:60]:
        frames = pictures(plan, seed=1)
        for turn, face in zip(plan.turns, faces_of(plan), strict=True):
            loudness = loudness_per_frame(spoken(turn, num_samples(plan.num_frames)), plan.num_frames)
            assert np.corrcoef(loudness, _darkness(frames, face.mouth_box))[0, 1] > 0.9, plan.data_id


@settings(max_examples=25, deadline=None)
@given(opening=st.floats(0, 1), wider=st.floats(0.1, 1), character=st.sampled_from(sorted(CHARACTER_BY_NAME)))
def test_a_wider_mouth_is_darker_and_changes_nothing_else(opening, wider, character):
    face = Face(character, *SINGLE)
    openings = np.array([[opening, min(1.0, opening + wider)]], np.float32)
    frames = render_faces((face,), "blue", openings, np.zeros((1, 2), bool))
    x0, y0, x1, y1 = face.mouth_box
    darkness = _darkness(frames, face.mouth_box)
    assert darkness[1] >= darkness[0] - 1e-9
    frames[:, y0:y1, x0:x1] = 0
    assert np.array_equal(frames[0], frames[1])


def test_an_open_mouth_is_at_least_12_by_10_dark_pixels():
    for name in CHARACTER_BY_NAME:
        frame = render_faces(
            (Face(name, *SINGLE),), "blue", np.ones((1, 1), np.float32), np.zeros((1, 1), bool)
        )[0]
        x0, y0, x1, y1 = Face(name, *SINGLE).mouth_box
        dark = frame[y0:y1, x0:x1].max(axis=-1) < 80
        assert dark.any(axis=0).sum() >= 12
        assert dark.any(axis=1).sum() >= 10


def test_the_ball_thuds_where_it_touches_the_floor_and_the_light_sounds_while_it_shines():
    ball = SoundEvent("ball", "red", "dull thuds", 0.2, 0.3)
    impact = np.abs(event_sound(ball, 16_000, 0))
    assert impact[: round(0.199 * 16_000)].max() == 0
    for at in (0.2, 0.5, 0.8):
        assert (
            impact[round(at * 16_000) : round((at + 0.05) * 16_000)].max()
            > 5 * impact[round((at - 0.03) * 16_000) : round((at - 0.002) * 16_000)].max()
        )
    light = ClipPlan(
        "x",
        "paired",
        "event",
        "",
        25,
        event=SoundEvent("light", "yellow", "a high tone", 0.1, 0.34),
        background="dark",
    )
    brightness = pictures(light, 0)[:, 28:36, 28:36].mean(axis=(1, 2, 3))
    assert np.corrcoef(brightness, loudness_per_frame(soundtrack(light, 0), 25))[0, 1] > 0.9


def test_a_camera_move_moves_the_mouth_box_with_the_face(plans):
    for plan in plans[1]["pretrain_camera"][:8]:
        frames, boxes = pictures(plan, 0), moving_boxes(plan)
        still = pictures(dataclasses.replace(plan, camera="static"), 0)
        assert frames.shape == still.shape
        assert not np.array_equal(frames[0], still[0])
        openings = [
            -float(frames[t, b[0][1] : b[0][3], b[0][0] : b[0][2]].mean()) for t, b in enumerate(boxes)
        ]
        reference = [-float(still[t, 31:48, 22:42].mean()) for t in range(len(still))]
        assert np.corrcoef(openings, reference)[0, 1] > 0.8, plan.camera


def test_held_out_pairs_never_train_and_are_well_spread(plans):
    casting = cast(FULL)
    assert len(casting.held_out) == 8
    assert len({word for word, _ in casting.held_out}) == 8
    assert {voice for _, voice in casting.held_out} == set(load_bank().voices)
    held_out = set(casting.held_out)
    spoken_pairs = {
        (turn.word, turn.voice) for of_set in plans[0].values() for plan in of_set for turn in plan.turns
    }
    in_references = {(word, voice) for voice, words in casting.references.values() for word, _ in words}
    assert not held_out & (spoken_pairs | in_references)
    assert {(p.turns[0].word, p.turns[0].voice) for p in plans[1]["pretrain_heldout_pairs"]} == held_out
    for name, of_set in plans[1].items():
        if name != "pretrain_heldout_pairs":
            assert not held_out & {(turn.word, turn.voice) for plan in of_set for turn in plan.turns}, name


def test_shares_of_kinds_swaps_and_descriptions(plans):
    paired = plans[0]["paired"]
    assert [
        sum(plan.kind == kind for plan in paired) for kind in ("speech", "dialogue", "event", "camera")
    ] == [504, 270, 54, 72]
    dialogues = [plan for plan in paired if plan.kind == "dialogue"]
    assert abs(sum(plan.swapped for plan in dialogues) / len(dialogues) - 0.5) < 0.01
    assert all(len({turn.voice for turn in plan.turns}) == 2 for plan in dialogues)
    alone = [plan for plan in paired if len(plan.turns) == 1]
    assert abs(sum(plan.swapped for plan in alone) / len(alone) - 0.2) < 0.01
    assert abs(sum(bool(plan.described_voice) for plan in alone) / len(alone) - 0.5) < 0.01
    swapped_and_described = sum(plan.swapped and bool(plan.described_voice) for plan in alone)
    assert abs(swapped_and_described / sum(plan.swapped for plan in alone) - 0.5) < 0.1


def test_a_described_voice_is_the_faces_usual_one_and_the_reference_is_the_heard_one(plans):
    casting, (sets, prompts) = cast(FULL), plans
    for plan in [*sets["paired"], *prompts["pretrain_disagree"]]:
        for turn in plan.turns:
            voice, words = casting.references[turn.reference]
            assert voice == turn.voice
            assert turn.word not in {word for word, _ in words}
        if plan.described_voice:
            assert plan.described_voice == CHARACTER_BY_NAME[plan.turns[0].character].voice
    assert all(
        plan.described_voice and plan.described_voice != plan.turns[0].voice
        for plan in prompts["pretrain_disagree"]
    )


def test_exchanged_dialogues_differ_in_who_lends_which_voice_alone(plans):
    casting, (_, prompts) = cast(FULL), plans
    asked, exchanged = prompts["pretrain_dialogue"], prompts["pretrain_dialogue_exchanged"]
    assert len(asked) == len(exchanged) == 48
    for one, other in zip(asked, exchanged, strict=True):
        assert not one.swapped and other.swapped
        assert (one.data_id, one.text, one.background) == (other.data_id, other.text, other.background)
        assert [t.word for t in one.turns] == [t.word for t in other.turns]
        assert [t.reference for t in one.turns] == [t.reference for t in reversed(other.turns)]
        assert [t.voice for t in one.turns] == [t.voice for t in reversed(other.turns)]
        for plan in (one, other):
            assert {(turn.word, turn.voice) for turn in plan.turns} <= set(casting.seen)


def test_prompt_sets_of_pretraining_and_alignment_share_no_text(plans):
    sets, prompts = plans
    pretraining = {plan.text for of_set in sets.values() for plan in of_set}
    pretraining |= {
        plan.text for name, of_set in prompts.items() if name.startswith("pretrain") for plan in of_set
    }
    train, held_out = ({plan.text for plan in prompts[name]} for name in ("align_train", "align_held_out"))
    assert (len(train), len(held_out)) == (128, 208)
    assert not pretraining & train
    assert not pretraining & held_out
    assert not train & held_out
    assert {name: len(of_set) for name, of_set in prompts.items()}["pretrain_seen"] >= 208


def test_texts_speak_the_words_of_their_turns(plans):
    for of_set in [*plans[0].values(), *plans[1].values()]:
        for plan in of_set:
            assert [span.text for span in parse(plan.text).spans] == [turn.word for turn in plan.turns]


def test_another_seed_is_another_corpus_and_a_longer_one_begins_alike():
    casting, other = cast(FULL), dataclasses.replace(FULL, seed=1)
    assert cast(other).held_out != casting.held_out
    longer = dataclasses.replace(FULL, hq_audio=FULL.hq_audio + 50)
    sounds = {(plan.text, plan.turns) for plan in training_sets(FULL, casting)["hq_audio"]}
    assert sounds <= {(plan.text, plan.turns) for plan in training_sets(longer, casting)["hq_audio"]}


def test_built_files_are_whole_and_readable(corpus):
    out, summary = corpus
    assert summary == json.loads((out / "summary.json").read_text()) | {
        "words": load_bank().words,
        "voices": load_bank().voices,
    }
    for name in ("paired", "audio_only", "hq_audio", "validation"):
        rows, rejected = read_manifest(out / f"{name}.jsonl")
        assert len(rows) == getattr(SMALL, name) == summary["sets"][name]["rows"]
        assert not rejected
        for row in rows:
            assert all((out / path).is_file() for path in row.meta["reference_paths"])
            media = read_media(row.data_path, want_video=row.has_video)
            frames = row.meta["num_frames"]
            assert media.frames is None or media.frames.shape == (frames, 64, 64, 3)
            assert media.waveform is not None
            assert abs(len(media.waveform) - num_samples(frames)) <= 1024
    for path in (out / "prompts").glob("*.jsonl"):
        checked = check_prompts(path, files=True)
        assert checked["errors"] == []
        assert checked["references"] == checked["spans"]
    assert not list(out.parent.glob(".*"))


def test_the_same_config_gives_the_same_bytes(corpus, tmp_path):
    out, _ = corpus
    build_corpus(SMALL, tmp_path / "again")

    def digests(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): hashlib.md5(path.read_bytes()).hexdigest() for path in files}

    assert digests(out) == digests(tmp_path / "again")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and not marked as made by `nava corpus`"):
        build_corpus(SMALL, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_impossible_configs_say_which_field():
    with pytest.raises(ValueError, match="swapped_share"):
        CorpusConfig(swapped_share=1.5)
    with pytest.raises(ValueError, match="held_out_pairs"):
        cast(CorpusConfig(held_out_pairs=21))
    with pytest.raises(ValueError, match="different texts exist"):
        config = CorpusConfig(prompts_align_train=10_000)
        prompt_sets(config, cast(config), [])
