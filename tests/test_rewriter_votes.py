import json

import pytest

from finetune.gsb.votes import read_votes
from finetune.rewriter.votes import VotedRewrite, as_completion, preferred, read_rewrites, text_digest

SOURCE = "A man says <S>hello<E>."


def vote(case: str, left: str, right: str, choice: str, user: str = "u", **more) -> dict:
    return {
        "user_id": user,
        "case_id": case,
        "left_model": left,
        "right_model": right,
        "choice": choice,
        "ours_side": None,
        **more,
    }


def rewrite(model: str, case: str, text: str, source: str = SOURCE) -> VotedRewrite:
    return VotedRewrite(model, case, source, text, text_digest(text))


def pairs_of(tmp_path, votes, rewrites, axis="overall"):
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in votes))
    return preferred(read_votes(path).votes, rewrites, axis, path)


LONG, SHORT, BROKEN = "The man says <S>hello<E> loudly.", "Man: <S>hello<E>.", "Man: <S>helo<E>."


def test_the_majority_chooses_whichever_side_it_was_on(tmp_path):
    votes = [
        vote("c", "a", "b", "left", "u"),
        vote("c", "b", "a", "right", "v"),
        vote("c", "a", "b", "right", "w"),
    ]
    found = pairs_of(tmp_path, votes, [rewrite("a", "c", LONG), rewrite("b", "c", SHORT)])
    (pair,) = found.pairs
    assert (pair.chosen, pair.rejected, pair.source, pair.simulated) == (
        LONG,
        SHORT,
        SOURCE,
        False,
    ) and not found.left_out


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path):
    votes = [
        vote("same", "a", "b", "tie"),
        vote("draw", "a", "b", "left", "u"),
        vote("draw", "a", "b", "right", "v"),
        vote("equal", "a", "b", "left"),
        vote("broken", "a", "b", "right"),
        vote("good", "a", "b", "left", simulated=True),
    ]
    rewrites = [rewrite("a", case, LONG) for case in ("same", "draw", "equal", "broken", "good")]
    rewrites += [rewrite("b", case, SHORT) for case in ("same", "draw")] + [rewrite("b", "equal", LONG)]
    rewrites += [rewrite("b", case, BROKEN) for case in ("broken", "good")]
    found = pairs_of(tmp_path, votes, rewrites)
    assert found.left_out == {"same": 2, "equal": 1, "broken": 1}
    assert [(pair.case_id, pair.rejected, pair.simulated) for pair in found.pairs] == [("good", BROKEN, True)]
    with pytest.raises(ValueError, match=r"no pair is left to learn from \(1 broken\)"):
        pairs_of(tmp_path, votes[4:5], rewrites)


def test_other_axes_are_not_counted(tmp_path):
    votes = [vote("c", "a", "b", "left", axis="sync"), vote("c", "a", "b", "right", axis="voice")]
    rewrites = [rewrite("a", "c", LONG), rewrite("b", "c", SHORT)]
    assert pairs_of(tmp_path, votes, rewrites, "voice").pairs[0].chosen == SHORT
    with pytest.raises(ValueError, match="no vote to count about 'overall'"):
        pairs_of(tmp_path, votes, rewrites)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([vote("other", "a", "b", "left")], "no clip of 'a' for case 'other'"),
        ([vote("c", "a", "z", "left")], "no clip of 'z'"),
        (
            [vote("c", "a", "b", "left", left_sha256=text_digest("another text"))],
            "votes are about another clip",
        ),
        ([vote("two", "a", "b", "left")], "different prompts"),
    ],
)
def test_votes_on_other_rewrites_or_prompts_are_refused(tmp_path, votes, message):
    rewrites = [rewrite("a", "c", LONG), rewrite("b", "c", SHORT), rewrite("a", "two", LONG)]
    rewrites += [rewrite("b", "two", "Woman: <S>hello<E>.", "A woman says <S>hello<E>.")]
    with pytest.raises(ValueError, match=message):
        pairs_of(tmp_path, votes, rewrites)


def test_a_digest_of_the_text_finds_the_rewrite(tmp_path):
    votes = [vote("c", "a", "b", "left", left_sha256=text_digest(LONG), right_sha256=text_digest(SHORT))]
    assert pairs_of(tmp_path, votes, [rewrite("a", "c", LONG), rewrite("b", "c", SHORT)]).pairs


def test_rewrites_are_read_from_what_nava_rewrite_writes(tmp_path):
    from finetune.rewriter.rows import Rewrite as Written
    from finetune.rewriter.rows import read_rows, write_rows
    from finetune.rewriter.template import by_template

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": SOURCE, "meta": {"kind": "speech"}}) + "\n")
    rows = read_rows(prompts, tmp_path / "out.jsonl")
    write_rows(tmp_path / "out.jsonl", rows, [Written(by_template(SOURCE), "template", "", 0)], "")
    (found,) = read_rewrites(tmp_path / "out.jsonl", "m")
    assert (found.model, found.case_id, found.source, found.text) == (
        "m",
        "prompts-00001",
        SOURCE,
        by_template(SOURCE),
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"data_id": "a", "prompt": "x"}'], r"r.jsonl:1 meta.rewrite.source: expected text, got None"),
        (
            ['{"data_id": "a", "prompt": "x", "meta": {"rewrite": {"source": "<S>open"}}}'],
            r":1 meta.rewrite.source: <S> at",
        ),
        (
            ['{"data_id": "a", "prompt": "x", "meta": {"rewrite": {"source": "y"}}}'] * 2,
            r":2 data_id: 'a' is also on line 1",
        ),
        (['{"data_id": "a", "prompt": "x", "meta": 5}'], r":1 meta.rewrite.source"),
        (
            ['{"data_id": "a", "prompt": "x", "sha256": 5, "meta": {"rewrite": {"source": "y"}}}'],
            r":1 sha256",
        ),
        (["not json"], r":1 json"),
    ],
)
def test_rows_that_are_no_rewrites_are_named(tmp_path, rows, message):
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(rows))
    with pytest.raises(ValueError, match=message):
        read_rewrites(path, "m")


def test_answers_hold_placeholders_only_for_spans_that_stand():
    two = "<S>a<E> then <S>b<E>"
    assert as_completion(two, "He: <S>a<E>, she: <S>b<E>") == "He: [SPEECH 1], she: [SPEECH 2]"
    assert as_completion(two, "He: <S>a<E>, she: <S>B<E>") == "He: [SPEECH 1], she: <S>B<E>"
    assert as_completion(two, "He: <S>b<E>") == "He: <S>b<E>"
    assert as_completion(two, "broken <S>") == "broken <S>"
