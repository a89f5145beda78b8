"""Speech marks that are nearly right are refused with what was meant; ordinary text is not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.prompt import SPEECH_END, SPEECH_START, parse
from pretrain.prompt.near_marks import near_mark

OPENING, CLOSING = (
    ["<", "＜", "&lt;", "&#60;", "&#x3C;", "&LT;", "‹", "«"],
    ["＞", ">", "&gt;", "&GT;", "›", "»"],
)
STARTS, ENDS = ["S", "s", "Ｓ", "Ѕ", "С", "ſ"], ["E", "e", "Ｅ", "Е", "Ε"]
FILLING = ["", " ", "\u200b", "\u00ad", "  "]


@st.composite
def marks(draw, names) -> str:
    fill = st.sampled_from(FILLING)
    parts = (st.sampled_from(OPENING), fill, st.sampled_from(names), fill, st.sampled_from(CLOSING))
    return "".join(map(draw, parts))


@given(st.sampled_from([STARTS, ENDS]).flatmap(lambda names: st.tuples(st.just(names), marks(names))))
def test_whatever_folds_into_a_mark_and_is_none_is_refused(given_mark):
    names, mark = given_mark
    meant = SPEECH_START if names is STARTS else SPEECH_END
    found = near_mark(f"A man says: {mark}seven")
    if mark == meant:
        assert found is None
    else:
        assert found and (found.found, found.meant, found.start) == (mark, meant, 12)


@pytest.mark.parametrize(
    ("text", "found", "meant"),
    [
        ("[S]seven[E]", "[S]", "<S>"),
        ("【S】你好【E】", "【S】", "<S>"),
        ("[speech]hi[/speech]", "[speech]", "<S>"),
        ("says: (S)seven(E).", "(S)", "<S>"),
        ("{S}seven{E}", "{S}", "<S>"),
        ("<S/>seven<E>", "<S/>", "<S>"),
        ("<S>seven</S>", "</S>", "<E>"),
        ("<S>seven< /E>", "< /E>", "<E>"),
        ("seven<e>", "<e>", "<E>"),
        ("<<S>>seven<<E>>", "<<S>>", "<S>"),
        ("<speech>seven</speech>", "<speech>", "<S>"),
        ("<voice name='ann'>seven</voice>", "<voice name='ann'>", "<S>"),
        ("&amp;lt;S&amp;gt;seven", "&amp;lt;S&amp;gt;", "<S>"),
        ("%3CS%3Eseven", "%3CS%3E", "<S>"),
        (r"\<S\>seven", r"<S\>", "<S>"),
        ("<S>seven<Е>", "<Е>", "<E>"),
        ("<extra_id_1>", "<extra_id_1>", "<extra_id_2>"),
        ("<S>&lt;extra_id_2&gt;seven<E>", "&lt;extra_id_2&gt;", "<extra_id_2>"),
        ("<EXTRA ID 2>", "<EXTRA ID 2>", "<extra_id_2>"),
    ],
)
def test_other_brackets_names_and_escapes(text, found, meant):
    near = near_mark(text)
    assert near and (near.found, near.meant) == (found, meant)
    with pytest.raises(ValueError, match=r"did you mean|remove it"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "I <3 you",
        "5 < <S>six<E>",
        "<S>a < b<E>",
        "AT&T, R&D, &lt;3",
        "The man(s) and the fiancé(e)",
        "(s)he says so",
        "from the south (S) to the east (E)",
        "option [S]",
        "[S]he [s]ays",
        "« Fin » and 《开始》",
        "[Start] wide shot [End]",
        "<b>bold</b> <Sarah> <AUDCAP>rain<ENDAUDCAP>",
        "extra identity",
        r"C:\Users\S, 50% off",
        "size S (small)",
    ],
)
def test_ordinary_text_is_no_mark(text):
    assert near_mark(text) is None
    parse(text)


@pytest.mark.parametrize("words", ["\u200b", "...", "—", "“”", "\u3164", "♪", "\u2800", "¿?"])
def test_a_span_without_a_letter_or_number_is_empty(words):
    with pytest.raises(ValueError, match="empty speech span"):
        parse(f"A man says: <S>{words}<E>.")


@pytest.mark.parametrize("words", ["7", "你好", "مرحبا", "हाँ", "...so?", "\u200bhi"])
def test_a_span_with_one_is_not(words):
    assert parse(f"<S>{words}<E>").spans[0].text == words


def test_a_combining_character_behind_a_mark_is_refused():
    with pytest.raises(ValueError, match="combining character right behind <S>"):
        parse("<S>\u0338seven<E>")


@pytest.mark.parametrize("piece", ["[", "<", "&amp;", "(S)x", "<s ", "\\", "< "])
def test_long_texts_of_brackets_take_linear_time(piece):
    def took(count: int) -> float:
        started = time.process_time()
        near_mark.__wrapped__(piece * count)
        return time.process_time() - started

    took(100)
    assert took(20_000) < 40 * max(took(2_000), 0.002)
