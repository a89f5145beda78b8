"""Votes (Good, Same, Bad) between rewrites of one prompt -> pairs that DPO learns from.

The votes are those of `finetune.gsb`: case_id names the prompt, left_model and right_model who rewrote it.
Raters may have read the rewrites or watched their clips. A digest in a vote is that of the rewrite's text
(UTF-8), or of its clip where the rewrite's row has one (`sha256`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.gsb.pairs import ClipRef, pair_up
from finetune.gsb.votes import Vote
from finetune.rewriter.rewards import fault
from finetune.rewriter.spans import protect
from pretrain.jsonl import FieldError, scan
from pretrain.prompt import SPEECH_END, SPEECH_START, parse

MADE = "rewrite"  # in a row's meta, of `nava rewrite`: source and more


@dataclass(frozen=True)
class VotedRewrite:
    """One rewrite of one prompt; `digest` is what a vote may call it by."""

    model: str
    case_id: str
    source: str
    text: str
    digest: str


@dataclass(frozen=True)
class RewritePair:
    """`chosen` was preferred to `rejected`; both rewrite `source`."""

    case_id: str
    source: str
    chosen: str
    rejected: str
    simulated: bool


@dataclass(frozen=True)
class PairedVotes:
    """What votes gave: pairs, and how many comparisons gave none, by reason."""

    pairs: tuple[RewritePair, ...]
    left_out: Mapping[str, int]


def read_rewrites(path: Path, model: str) -> list[VotedRewrite]:
    """Rows of a `nava rewrite` output by `model`. FileNotFoundError, or ValueError (file, line, field)."""
    rewrites: list[VotedRewrite] = []
    seen: dict[str, int] = {}
    for line, row in scan(path):
        if isinstance(row, FieldError):
            raise ValueError(row.at(path))
        case, text = row.get("case_id", row.get("data_id")), row.get("prompt", row.get("text"))
        source, digest = _source(row), row.get("sha256")
        for name, value in (("data_id", case), ("prompt", text), (f"meta.{MADE}.source", source)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    FieldError(
                        line, name, f"expected text, got {value!r}; give what `nava rewrite` wrote"
                    ).at(path)
                )
        assert isinstance(case, str) and isinstance(text, str) and isinstance(source, str)
        if digest is not None and not isinstance(digest, str):
            raise ValueError(
                FieldError(line, "sha256", f"expected a digest as text, got {digest!r}").at(path)
            )
        try:
            parse(source)
        except ValueError as error:
            raise ValueError(FieldError(line, f"meta.{MADE}.source", str(error)).at(path)) from None
        if case in seen:
            raise ValueError(
                FieldError(
                    line, "data_id", f"{case!r} is also on line {seen[case]}; one rewriter, one rewrite"
                ).at(path)
            )
        seen[case] = line
        rewrites.append(VotedRewrite(model, case, source, text, digest or text_digest(text)))
    return rewrites


def _source(row: Mapping[str, Any]) -> Any:
    """The prompt that a row was made from; None where it does not say."""
    meta = row.get("meta")
    made = meta.get(MADE) if isinstance(meta, dict) else None
    return made.get("source") if isinstance(made, dict) else None


def text_digest(text: str) -> str:
    """sha256 of the text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def preferred(
    votes: Iterable[Vote], rewrites: Sequence[VotedRewrite], axis: str, source: Path | str
) -> PairedVotes:
    """A pair for each two rewrites of a prompt with a majority for one, in order of first vote.

    Left out and counted: same (most frequent answer or a draw), equal (the texts are), broken (the preferred
    one lost or altered a span). Raises ValueError as `gsb.pairs.pair_up` (a vote on
    a rewrite that is not there, is another text, or answers another prompt), where no vote is about `axis`,
    or where no pair is left.
    """
    on_axis = [vote for vote in votes if vote.axis == axis]
    if not on_axis:
        raise ValueError(f"{source}: no vote to count about {axis!r}; ask raters, or name another --axis")
    known = {(rewrite.model, rewrite.case_id): rewrite for rewrite in rewrites}
    named = [
        ClipRef(rewrite.case_id, rewrite.model, rewrite.case_id, rewrite.source, None, rewrite.digest)
        for rewrite in rewrites
    ]
    pairs, left_out = [], Counter[str]()
    for pair in pair_up(on_axis, named, source):
        label = pair.label(axis)
        first, second = (known[clip.model, clip.case_id] for clip in (pair.first, pair.second))
        chosen, rejected = (first, second) if label == 1 else (second, first)
        reason = (
            "same"
            if not label
            else "equal"
            if first.text == second.text
            else "broken"
            if fault(chosen.source, chosen.text)
            else ""
        )
        if reason:
            left_out[reason] += 1
        else:
            pairs.append(
                RewritePair(chosen.case_id, chosen.source, chosen.text, rejected.text, pair.simulated)
            )
    if not pairs:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(
            f"{source}: no pair is left to learn from ({counts}); collect votes on other rewrites"
        )
    return PairedVotes(tuple(pairs), dict(left_out))


def as_completion(source: str, rewrite: str) -> str:
    """The completion that gives `rewrite`: placeholder i where span i stands unaltered."""
    protected = protect(source)
    completion = rewrite
    try:
        found = parse(rewrite).spans
    except ValueError:
        return rewrite
    for number, span in reversed(list(enumerate(found, start=1))):
        if number <= len(protected.words) and span.text == protected.words[number - 1]:
            start, end = span.start - len(SPEECH_START), span.end + len(SPEECH_END)
            completion = completion[:start] + protected.placeholder(number) + completion[end:]
    return completion
