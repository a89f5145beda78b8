import math
import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.rewriter.config import DpoTuning, GrpoTuning, described
from finetune.rewriter.form import rewrite_of
from finetune.rewriter.rewards import check_weights, clips_of, reward_functions, spans, spans_kept, structure
from finetune.rewriter.template import by_template
from finetune.rewriter.votes import as_completion
from pretrain.prompt import PromptRow, parse
from pretrain.prompt.near_marks import near_mark

SOURCE = "A man says <S>hello<E> and a woman says <S>good bye<E>."


def row(text: str, name: str = "p") -> PromptRow:
    return PromptRow(parse(text), None, (), None, name)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("He says [SPEECH 1], she says [SPEECH 2].", 1.0),
        ("He says [SPEECH 2], she says [SPEECH 1].", 0.25),  # one of two in order
        ("He says [SPEECH 1].", 0.25),
        ("He says [SPEECH 1] [SPEECH 2] [SPEECH 2].", 0.5 * 2 / 3),
        ("He says <S>helo<E>, she says [SPEECH 2].", 0.25),
        ("He says [SPEECH 1], she says [SPEECH 2]. [SPEECH 3]", 0.5),  # a placeholder of nobody
        ("Nobody speaks.", 0.0),
        ("He says <S>hello", 0.0),
    ],
)
def test_spans_are_worth_what_is_kept(answer, value):
    assert spans([], [answer], [SOURCE]) == [pytest.approx(value)]


def test_a_prompt_without_speech_loses_by_made_up_speech():
    assert spans_kept("A dog runs.", "The dog runs fast.") == 1
    assert spans_kept("A dog runs.", "The dog says <S>wow<E>.") == 0


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>[]"), min_size=1),
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_a_template_rewrite_gets_full_marks_and_answers_come_back(words):
    words = [word for word in words if any(unicodedata.category(sign)[0] in "LN" for sign in word)]
    source = "A man says " + " then ".join(f"<S>{word}<E>" for word in words) + " in a park."
    assume(near_mark(source) is None)  # as <S>» is; the prompt is refused
    rewrite = by_template(source)
    assert spans_kept(source, rewrite) == 1
    assert rewrite_of(source, as_completion(source, rewrite)) == rewrite_of(source, rewrite)
    assert not words or "[SPEECH" in as_completion(source, rewrite)
    (kept,) = spans([], [as_completion(source, rewrite)], [source])
    (formed,) = structure([], [[{"role": "assistant", "content": as_completion(source, rewrite)}]], [source])
    assert kept == 1 and formed == 1


def test_a_rewrite_in_another_language_is_not_in_form():
    (kept,) = structure([], [by_template("一个男人走路。")], ["A man walks."])
    assert kept is not None and kept < 0.3


def test_clips_are_scored_once_each_and_lost_speech_is_the_worst_of_its_prompt():
    asked = []

    def score(rewrites, rows):
        asked.append(list(zip(rewrites, [each.data_id for each in rows], strict=True)))
        return [math.nan if "fog" in text else float(len(text)) for text in rewrites]

    rows = [row(SOURCE, "a"), row("A dog runs.", "b")]
    answers = [
        "x [SPEECH 1] [SPEECH 2]",
        "xx [SPEECH 1] [SPEECH 2]",
        "x [SPEECH 1] [SPEECH 2]",
        "x [SPEECH 1]",
        "fog",
        "dog",
    ]
    source, places = [SOURCE] * 4 + ["A dog runs."] * 2, [0, 0, 0, 0, 1, 1]
    found = clips_of(score, rows)([], answers, source=source, row=places, trainer_state=None)
    assert len(asked) == 1 and len(asked[0]) == 4  # equal rewrites share a clip
    assert {name for text, name in asked[0] if "dog" in text} == {"b"}
    first, second = float(len("x <S>hello<E> <S>good bye<E>")), float(len("xx <S>hello<E> <S>good bye<E>"))
    assert found == [first, second, first, first, None, 3.0]  # the fourth lost a span; fog cannot be scored


def test_where_all_lost_their_speech_nobody_is_judged_by_clips():
    def score(rewrites, rows):
        raise AssertionError("no clip is to be made")

    assert clips_of(score, [row(SOURCE)])([], ["a", "b"], source=[SOURCE] * 2, row=[0, 0]) == [None, None]


def test_a_score_that_leaves_rewrites_out_is_refused():
    with pytest.raises(ValueError, match="0 values for 1 rewrites"):
        clips_of(lambda rewrites, rows: [], [row("A dog.")])([], ["A dog."], source=["A dog."], row=[0])


def test_weights_name_rewards():
    with pytest.raises(ValueError, match=r"rewards\.span: unknown reward; did you mean 'spans'"):
        check_weights({"span": 1.0}, False)
    with pytest.raises(ValueError, match="none is left"):
        check_weights({"clips": 1.0, "spans": 0.0}, False)
    functions, weights = reward_functions({"spans": 2.0, "structure": 0.0, "length": 1.0, "clips": 3.0})
    assert [function.__name__ for function in functions] == ["spans", "length"] and weights == [2.0, 1.0]
    functions, _ = reward_functions({"clips": 3.0}, lambda rewrites, rows: [], [])
    assert [function.__name__ for function in functions] == ["clips"]  # TRL names the metric by it


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (GrpoTuning, {"batch": 12, "micro_batch": 8}, "no multiple of micro_batch"),
        (GrpoTuning, {"group": 1}, "group"),
        (GrpoTuning, {"batch": 16, "group": 5}, "divide batch 16"),
        (GrpoTuning, {"rewards": {"spans": -1.0}}, "weights from 0"),
        (GrpoTuning, {"vllm": "localhost:8000"}, "base URL"),
        (GrpoTuning, {"learning_rate": math.nan}, "learning_rate"),
        (GrpoTuning, {"steps": 0}, "steps"),
        (DpoTuning, {"beta": 0.0}, "beta"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


def test_what_only_changes_checkpoints_is_no_other_run():
    assert described(GrpoTuning(save_every=3)) == described(GrpoTuning())
    assert described(GrpoTuning(seed=3)) != described(GrpoTuning())
