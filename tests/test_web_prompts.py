"""Prompts as they are typed: what is highlighted, and the place of what is wrong."""

import pickle
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.web.prompts import prompt_html, read_typed
from pretrain.prompt import SpanError, parse
from pretrain.prompt.characters import broken_character

PIECES = [
    "<S>",
    "<E>",
    "<s>",
    "</S>",
    "<extra_id_2>",
    "seven",
    " a man says ",
    "\n",
    "你好",
    "&lt;S&gt;",
    "(S)",
    "\x07",
    "1",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text(max_size=60)
PLACE = re.compile(r"\(line (\d+), column (\d+)(?:: (.*))?\)", re.DOTALL)


def is_right(text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return not broken_character(text)


@given(TEXTS)
def test_pieces_are_the_text_and_problems_are_the_parsers(text):
    typed = read_typed(text)
    assert "".join(piece for piece, _ in typed.pieces) == text
    assert (not typed.problem) == is_right(text)
    if not typed.problem:
        assert typed.spans == tuple(span.text for span in parse(text).spans)
        assert [piece for piece, kind in typed.pieces if kind == "speech"] == list(typed.spans)
        assert not any(kind == "wrong" for _, kind in typed.pieces)


@given(TEXTS)
def test_a_problem_has_its_place(text):
    typed = read_typed(text)
    if not typed.problem:
        return
    line, column, _ = PLACE.search(typed.problem[typed.problem.rfind("(line ") :]).groups()
    before = "".join(
        piece for piece, kind in typed.pieces[: [kind for _, kind in typed.pieces].index("wrong")]
    )
    assert text.split("\n")[int(line) - 1][: int(column) - 1] == before.rsplit("\n", 1)[-1]
    assert before.count("\n") == int(line) - 1


@pytest.mark.parametrize(
    ("text", "line", "column", "excerpt"),
    [
        ("A man says: <S>hello", 1, 13, "A man says: →<S>←hello"),
        ("First <S>one<E>.\nThen <S>two", 2, 6, "…ne<E>. Then →<S>←two"),
        ("A <E>", 1, 3, "A →<E>←"),
        ("<S>a <S>b<E>", 1, 6, "<S>a →<S>←b<E>"),
        ("a <s>b</s>", 1, 3, "a →<s>←b</s>"),
        ("says <S> <E>.", 1, 6, "says →<S> <E>←."),
    ],
)
def test_where(text, line, column, excerpt):
    problem = read_typed(text).problem
    found = PLACE.search(problem[problem.rfind("(line ") :])
    assert found and (int(found[1]), int(found[2])) == (line, column) and excerpt in found[3]


def test_spans_before_a_fault_are_still_highlighted():
    typed = read_typed("<S>one<E> <S>two <S>three<E>")
    assert typed.spans == ("one",) and ("one", "speech") in typed.pieces
    assert ("<S>", "wrong") in typed.pieces


def test_words_are_counted_as_the_word_error_rate_does():
    typed = read_typed("Two: <S>twenty-one, please<E> and <S>你好<E>.")
    assert typed.words == 5 and typed.told.startswith("2 speech spans, 5 spoken words, ")
    assert read_typed("").told == ""


def test_the_services_limit():
    assert read_typed("a" * 11, 10).problem == "11 characters; the service takes at most 10, make it shorter"
    assert not read_typed("a" * 10, 10).problem


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts, self.tags, self.inside = [], set(), 0

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


@given(TEXTS)
def test_html_shows_the_text_and_nothing_of_it_is_markup(text):
    text = text.replace("\r", "").replace("\x00", "")  # which no HTML can show
    found = Texts()
    found.feed(prompt_html(read_typed(text)))
    found.close()
    assert "".join(found.texts).startswith(text)
    assert found.tags <= {"div", "p", "span", "b", "mark", "em"}


def test_the_error_travels_between_processes():
    with pytest.raises(SpanError) as raised:
        parse("a <S>b")
    found = pickle.loads(pickle.dumps(raised.value))
    assert (str(found), found.start, found.end) == (str(raised.value), 2, 5)
