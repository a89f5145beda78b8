"""Texts that lie beside raw videos: subtitles as players read them, and cues without sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_world import Sound, Video, scene, write

from experiments.preparation.captions import described
from experiments.preparation.config import PrepareConfig
from experiments.preparation.records import GivenText, RawClip, RawVideo, Rejection, SpokenSpan
from experiments.preparation.source_work import Settings, work_on
from experiments.preparation.sources import given_text
from experiments.preparation.subtitles import subtitles, within_sound
from experiments.preparation.words import aligned
from pretrain.prompt import parse

EVERY = Settings(PrepareConfig(steps=()), 24.0)
PATH = Path("x.srt")
WORDS = st.lists(st.sampled_from(["doctor", "garden", "table", "it's", "7"]), min_size=1, max_size=4).map(
    " ".join
)


def test_subtitles_of_both_kinds_and_bad_ones():
    text = (
        "1\r\n00:00:01,500 --> 00:00:02,000\r\n<i>Hello</i> you\r\n\r\n"
        "2\n00:01.0 --> 00:03.25 line:1\n[music]\nBOB: Yes.\n"
    )
    assert subtitles(text, PATH) == ((1.0, 3.25, "Yes."), (1.5, 2.0, "Hello you"))
    for bad, reason in (
        ("00:00:02,000 --> 00:00:01,000\nx\n", "no start before its end"),
        ("nothing here", "no cue"),
        ("00:00:01,000 --> 00:00:02,000 doctor\ngarden\n", "words in its line of times"),
        ("00:00:01,000 --> 00:00:02,000\ndoctor\n2\ngarden 00:00:02,000 --> 00:00:03,000\n", "words in its"),
        (
            "00:00:01,000 --> 00:00:02,000\ndoctor 00:00:02,000 --&gt; 00:00:03,000\n",
            "a line of times stands",
        ),
        ("00:00:01,000 --> 00:00:02,000\ndoctor &#x81;\n", "control character U\\+0081"),
    ):
        with pytest.raises(ValueError, match=reason):
            subtitles(bad, PATH)


@settings(max_examples=100, deadline=None)
@given(
    said=st.lists(WORDS, min_size=1, max_size=6),
    between=st.sampled_from(["", "\n", "\n\n", "\u00a0\n", " \t\n", "\u3000\n"]),
    ending=st.sampled_from(["\n", "\r\n", "\r", "\r\r\n"]),
    numbers=st.booleans(),
)
def test_cues_end_where_the_next_begins_whatever_is_between(said, between, ending, numbers):
    cues = [
        (f"{place + 1}\n" if numbers else "")
        + f"00:00:{place:02d},000 --> 00:00:{place:02d},900\n{words}\n{between}"
        for place, words in enumerate(said)
    ]
    expected = tuple((float(place), place + 0.9, words) for place, words in enumerate(said))
    assert subtitles("".join(cues).replace("\n", ending), PATH) == expected


def test_entities_notes_and_identifiers_are_not_said():
    text = (
        "WEBVTT - talk\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE before\n\nfirst\n"
        "00:00.000 --> 00:01.000 position:10%\n<v Ann>&gt;&gt; doctor&nbsp;&amp; garden &#x27;s&lt;i&gt;\n\n"
        "NOTE doctor\n7\n\n00:01.000 --> 00:02.000\n \n<c>table</c>\n\ncredits"
    )
    assert subtitles(text, PATH) == ((0.0, 1.0, "doctor & garden 's<i>"), (1.0, 2.0, "table"))
    plain = "1\n00:00:00,000 --> 00:00:01,000\nAT&T &amp; R&D &copy me\n"
    assert subtitles(plain, PATH) == ((0.0, 1.0, "AT&T & R&D &copy me"),)


def test_cues_are_cut_to_the_sound_and_those_without_any_are_named():
    cues = ((-2.0, -1.0, "a"), (-1.0, 0.5, "b"), (3.9, 5.0, "c"), (4.0, 5.0, "d"), (60.0, 62.0, "The End"))
    inside, outside = within_sound(cues, 4.0, "x.mp4")
    assert inside == ((0.0, 0.5, "b"), (3.9, 4.0, "c"))
    assert [one.value for one in outside] == [-2.0, 4.0, 60.0]
    assert (
        "60.00 to 62.00 s, the given time of 'The End'" in outside[-1].reason
        and outside[-1].source == "x.mp4"
    )
    inside, outside = within_sound(((100.0, 3900.0, "ms"), (4000.0, 5000.0, "ms")), 4.0, "x.mp4")
    assert not inside and len(outside) == 1 and "none of the 2 given times" in outside[0].reason


def spoken_video(path: Path, seed: int) -> Video:
    sound = Sound(4.0, seed)
    sound.phrase(0.4, ["doctor", "garden", "doctor", "table"], "slt")
    return write(path, scene(4.0, seed), sound)


def cue(place: int, start_s: int, words: str) -> str:
    minute, second = divmod(start_s, 60)
    return f"{place}\n00:{minute:02d}:{second:02d},200 --> 00:{minute:02d}:59,000\n{words}\n\n"


def test_no_sound_for_a_text_leaves_the_aligner_ready(tmp_path):
    video = spoken_video(tmp_path / "a.mp4", 1)
    sound = Sound(4.0, 1)
    sound.phrase(0.4, ["doctor", "garden", "doctor", "table"], "slt")
    said = " ".join(one.word for one in video.said)
    before = aligned(sound.samples, said)
    assert before[1] >= EVERY.config.min_alignment
    assert aligned(np.zeros(0, np.float32), said) == ([], 0.0)
    assert aligned(sound.samples, said) == before


def test_a_cue_beyond_the_end_costs_nothing_else(tmp_path):
    """End credits, and times in milliseconds: the other cues and the other videos are as they were."""
    said = "doctor garden doctor table"
    texts = {
        "milliseconds": cue(1, 6000 - 60, said),
        "credits": cue(1, 0, said) + cue(2, 60, "The End"),
        "after": cue(1, 0, said),
    }
    found, reasons = {}, {}
    for seed, (name, text) in enumerate(texts.items()):
        video = spoken_video(tmp_path / f"{name}.mp4", seed).path
        video.with_suffix(".srt").write_text(text)
        clips: list[RawClip | Rejection] = []
        outcome = work_on(
            RawVideo(video, video.name, name, given_text(video, EVERY.config)),
            EVERY,
            lambda clip, clips=clips: clips.append(clip),
        )
        found[name] = [
            (clip.words_by, [(word.text, word.fits) for word in clip.words])
            for clip in clips
            if isinstance(clip, RawClip)
        ]
        reasons[name] = [one.reason for one in outcome.rejected]
    assert found["credits"] == found["after"] == [("subtitles", [(word, True) for word in said.split()])]
    assert not found["milliseconds"] and not reasons["after"]
    assert len(reasons["credits"]) == 1 and "no sound at 60.20" in reasons["credits"][0]
    assert len(reasons["milliseconds"]) == 1 and "none of the 1 given times" in reasons["milliseconds"][0]


def captioned(caption: str, *said: str) -> RawClip:
    frames = np.zeros((49, 8, 8, 3), np.uint8)
    clip = RawClip(
        "a", "a.mp4", 0.0, 24.0, frames, np.zeros((1, 100), np.float32), 16_000, GivenText(caption)
    )
    return replace(clip, spans=tuple(SpokenSpan(text, 0.1, 0.2) for text in said))


def test_a_caption_of_more_than_the_clip_is_not_cut_into_pieces():
    """A clip of one of two turns has no caption with a hole, or of somebody who is not in it."""
    caption = "A man says: <S>doctor garden<E>, then a woman answers: <S>doctor table<E>."
    whole = described(captioned(caption, "doctor garden", "doctor table"), EVERY.config)
    assert isinstance(whole, RawClip) and (whole.text, whole.caption_by) == (caption, "given")
    assert "caption_left_out" not in whole.labels
    for said in (("doctor garden",), ("doctor table",), ("doctor", "garden", "doctor table"), ()):
        clip = described(captioned(caption, *said), EVERY.config)
        assert isinstance(clip, RawClip) and clip.caption_by == "template"
        assert "man" not in clip.text and "answers" not in clip.text
        assert [span.text for span in parse(clip.text).spans] == list(said)
        assert f"2 spans of speech that are not the {len(said)}" in clip.labels["caption_left_out"]
    plain = described(captioned("A kitchen.", "doctor garden"), EVERY.config)
    assert isinstance(plain, RawClip)
    assert plain.text == "A kitchen. A voice says: <S>doctor garden<E>" and plain.caption_by == "given"
