"""Speech spans taken out, put back and checked; the form of a long prompt; the template that needs no
model."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rewrite_world import SPAN, good_answer, prompts

from finetune.rewriter.form import (
    CHINESE,
    ENGLISH,
    FORMS,
    form_of,
    length,
    messages,
    rewrite_of,
    sections,
    structure,
)
from finetune.rewriter.spans import check_spans, map_outside, outside, protect
from finetune.rewriter.template import by_template

TWO = "A woman says <S>Good day<E> and a man <S>no<E>."


@given(prompts())
def test_what_is_taken_out_is_put_back(prompt):
    protected = protect(prompt)
    assert "<S>" not in protected.text and "<E>" not in protected.text
    assert protected.name not in prompt
    assert protected.restore(protected.text) == prompt
    assert check_spans(prompt, prompt) == ""
    assert list(protected.words) == SPAN.findall(prompt)


@given(prompts(), st.sampled_from([ENGLISH, CHINESE]))
def test_the_template_keeps_every_span_and_the_whole_form(prompt, form):
    text = by_template(prompt, form)
    assert check_spans(prompt, text) == ""
    assert prompt.strip() in text
    assert structure(text, form) == 1.0
    assert length(text, form) > length("", form) == 0.0


@given(prompts())
def test_a_good_answer_becomes_a_rewrite_of_the_whole_form(prompt):
    text = rewrite_of(prompt, f"<think>[SPEECH 1] {prompt}</think>\n\n```\n{good_answer(prompt)}\n```\n")
    assert SPAN.findall(text) == SPAN.findall(prompt)
    assert check_spans(prompt, text) == ""
    assert structure(text, form_of(prompt)) == 1.0


@given(prompts(), prompts())
def test_the_check_agrees_with_a_plain_comparison_of_spans(one, other):
    if SPAN.findall(one) != SPAN.findall(other):
        assert check_spans(one, other)
    else:
        pieces = outside(one)
        assert pieces is not None and len(pieces) == one.count("<S>") + 1


@pytest.mark.parametrize(
    ("rewritten", "reason"),
    [
        ("A woman and a man.", "0 speech spans, expected 2"),
        ("<S>Good day<E>", "1 speech spans, expected 2"),
        ("<S>Good day<E> <S>no<E> <S>no<E>", "3 speech spans, expected 2"),
        ("<S>no<E> <S>Good day<E>", "another order"),
        ("<S>Good day<E> <S>nein<E>", "speech span 2 altered"),
        ("<S>Good  day<E> <S>no<E>", "speech span 1 altered"),
        ("<S>Good d\u0430y<E> <S>no<E>", "speech span 1 altered"),  # a Cyrillic letter that looks the same
        ("<S>Good day<E> <S>no", "without <E>"),
        ("<S><extra_id_2>Good day<E> <S>no<E>", "remove it"),
        ("<S>Good day<E>\u0338 <S>no<E>", "combining character right behind <E>"),
        ("＜Ｓ＞hm <S>Good day<E> <S>no<E>", "did you mean <S>"),
        ("< /s > <S>Good day<E> <S>no<E>", "did you mean <E>"),
        ("<\u200bS> <S>Good day<E> <S>no<E>", "did you mean <S>"),
        ("<S>Good day<E> \u202e<S>no<E>", r"U\+202E added outside"),
        ("\x1b <S>Good day<E> <S>no<E>", r"U\+001B added outside"),
        ("\ud83d <S>Good day<E> <S>no<E>", "half a surrogate"),
    ],
)
def test_what_the_check_refuses(rewritten, reason):
    with pytest.raises(AssertionError, match=reason):
        assert not (found := check_spans(TWO, rewritten)), found


def test_nfd_and_nfc_of_a_span_are_not_the_same():
    assert check_spans("<S>caf\u00e9<E>", "<S>cafe\u0301<E>") == "speech span 1 altered"
    # what the source has itself may stay
    assert check_spans("a\u202e <pad> <S>x<E>", "b <S>x<E> <pad> \u202e") == ""


def test_marks_of_the_source_must_be_right():
    for broken in ("<S>a", "a<E>", "<S> <E>", "<s> <S>a<E>"):
        with pytest.raises(ValueError):
            check_spans(broken, "a")
        with pytest.raises(ValueError):
            messages(broken)


def test_placeholders_survive_marks_around_them_and_unknown_ones_are_told():
    protected = protect(TWO)
    assert protected.restore("a <S>[SPEECH 1]<E> b <S> [SPEECH 2] <E>") == "a <S>Good day<E> b <S>no<E>"
    left = "'[SPEECH 3]' is left in place of speech; there are 2 spans"
    assert protected.check(TWO, protected.restore("[SPEECH 1] [SPEECH 2] [SPEECH 3]")) == left
    assert "'[speech two]' is left" in protected.check(
        TWO, protected.restore("[SPEECH 1] [SPEECH 2] [speech two]")
    )
    assert protect("[SPEECH 1] <S>a<E>").text == "[SPEECH 1] [SPEECHX 1]"


def test_the_request_shows_words_only_beside_their_placeholder():
    system, user = messages('A man: <S>"hi"\n<E>')
    assert user["content"] == 'A man: [SPEECH 1]\n[SPEECH 1] is spoken: "\\"hi\\"\\n"'
    assert all(f'"{part.cue}"' in system["content"] for part in ENGLISH.parts)
    assert (
        "Chinese" in messages("一只猫")[0]["content"]
        and "Chinese" in messages("a cat", FORMS["zh"])[0]["content"]
    )
    assert form_of("A woman says <S>你好<E>") is ENGLISH


def test_structure_counts_parts_in_order_with_words_behind_their_cue():
    text = by_template("A cat sleeps.")
    assert list(sections(text)) == [part.name for part in ENGLISH.parts]
    assert structure("The video shows. At first. Then. At the end. The camera. The sound. Overall.") == 0.0
    assert structure(
        " ".join(f"{part.cue} one two three." for part in reversed(ENGLISH.parts))
    ) == pytest.approx(1 / 8)
    assert structure(" ".join(f"{part.cue} one two three." for part in ENGLISH.parts)) == pytest.approx(7 / 8)
    assert structure("A dog. <S>The video shows one two three. At first one two three<E>") == pytest.approx(
        1 / 8
    )  # speech alone
    assert structure(text.replace(ENGLISH.silence, "") + " <S>hm<E>") == 1.0
    assert structure(text + " <S>hm<E>") == pytest.approx(7 / 8)  # says nobody speaks, and somebody does


def test_length_rises_to_the_wanted_range_and_falls_behind_it():
    def words(count):
        return " ".join(f"w{number}" for number in range(count))

    values = [length(words(count), ENGLISH) for count in range(0, 2 * ENGLISH.high + 2)]
    assert values[0] == 0.0 and values[ENGLISH.low : ENGLISH.high + 1] == [1.0] * (
        ENGLISH.high - ENGLISH.low + 1
    )
    assert (
        values[: ENGLISH.low] == sorted(values[: ENGLISH.low])
        and values[2 * ENGLISH.high] == values[-1] == 0.0
    )
    assert length("It rains. " * 100, ENGLISH) == pytest.approx(
        2 / ENGLISH.low
    )  # said again is not said more
    assert length(f"<S>{words(100)}<E>", ENGLISH) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        " " * 200_000,
        "```\n" + "\n" * 200_000 + "```x",
        "<" + " " * 200_000,
        "<S>" * 60_000,
        "</think" * 30_000,
        ". " * 100_000,
        "Then. " * 40_000,
        "<S>" + " " * 200_000 + "[",
        "\u0301\u0323" * 10_000,
        "\n " * 100_000,
        "[" * 200_000,
    ],
)
def test_no_answer_takes_long_to_judge(answer):
    started = time.perf_counter()
    text = rewrite_of(TWO, answer)
    assert protect(TWO).check(TWO, text) and structure(text) <= 1 and length(text) <= 1
    assert time.perf_counter() - started < 5.0


def test_only_what_is_not_spoken_is_mapped():
    assert map_outside("a <S>a\nb<E> a", str.upper) == "A <S>a\nb<E> A"
    assert map_outside("a <S>", str.upper) == "a <S>"
    assert rewrite_of("x <S>a\nb<E>", "one\n\ntwo\n[SPEECH 1]\nend") == "one two <S>a\nb<E> end"
