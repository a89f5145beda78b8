"""What tuning does for a prompt rewriter, on a small model and one core: `python
tests/rewriter_tuning.py`.

A student that makes mistakes (`rewriter_student`) is tuned twice: by GRPO on the rewards of form, and by DPO
on votes of a simulated rater who prefers the rewrite of the higher form reward. Before and after are measured
on the same prompts, which no tuning saw; differences are paired by prompt, their 95 % intervals come from
resampling prompts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rewriter_student import (
    ANSWER,
    ASK,
    END,
    Student,
    answers,
    make_student,
    short_prompts,
)

from experiments.benchmarks.harness import facts
from experiments.scoring.statistics import bootstrap_difference, bootstrap_mean
from finetune.gsb.votes import read_votes
from finetune.rewriter.config import DpoTuning, GrpoTuning
from finetune.rewriter.form import messages, rewrite_of
from finetune.rewriter.language_model import load
from finetune.rewriter.rewards import length, spans, structure
from finetune.rewriter.tune import TuneResult, tune_dpo, tune_grpo
from finetune.rewriter.votes import PairedVotes, VotedRewrite, as_completion, preferred, text_digest
from pretrain.files import write_json
from pretrain.jsonl import dump
from pretrain.prompt import PromptRow

REWARDS = {"spans": spans, "structure": structure, "length": length}
WEIGHTS = {"spans": 2.0, "structure": 1.0, "length": 1.0}
PER_PROMPT = 4
GRPO = GrpoTuning(
    steps=50,
    batch=48,
    micro_batch=48,
    group=8,
    learning_rate=2e-3,
    completion_tokens=180,
    rank=8,
    alpha=16,
    save_every=25,
    rewards=WEIGHTS,
    device="cpu",
)
DPO = DpoTuning(
    steps=50,
    batch=16,
    micro_batch=16,
    learning_rate=1e-3,
    completion_tokens=180,
    rank=8,
    alpha=16,
    save_every=25,
    device="cpu",
)


def form_rewards(rows: Sequence[PromptRow], answered: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Mean of each reward over the answers of each prompt, and `total`, their weighted mean: 0 to 1."""
    found: dict[str, list[float]] = {}
    for name, reward in REWARDS.items():
        values = [
            reward((), made, [row.prompt.text] * len(made)) for row, made in zip(rows, answered, strict=True)
        ]
        found[name] = [sum(value or 0.0 for value in each) / len(each) for each in values]
    weight = sum(WEIGHTS.values())
    found["total"] = [
        sum(WEIGHTS[name] * found[name][place] for name in REWARDS) / weight for place in range(len(rows))
    ]
    return found


def compared(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, Any]:
    """Means before and after and the paired difference, each with its interval; n is prompts."""
    table = {}
    for name, values in before.items():
        ones = [1.0] * len(values)
        difference = bootstrap_difference((after[name], ones), (values, ones))
        intervals = {
            "before": bootstrap_mean(values),
            "after": bootstrap_mean(after[name]),
            "difference": difference,
        }
        table[name] = {key: interval.as_json() for key, interval in intervals.items()}
    return table


def voted(rows: Sequence[PromptRow], answered: Sequence[Sequence[str]], folder: Path) -> PairedVotes:
    """Pairs of the first two answers to each prompt, by the simulated rater's votes, which go through the
    votes' own format."""
    rewrites, votes = [], []
    for row, (first, second, *_) in zip(rows, answered, strict=True):
        source = row.prompt.text
        texts = {"first": rewrite_of(source, first), "second": rewrite_of(source, second)}
        rewrites += [
            VotedRewrite(name, row.data_id, source, text, text_digest(text)) for name, text in texts.items()
        ]
        one, other = (form_rewards([row], [[answer]])["total"][0] for answer in (first, second))
        votes.append(
            {
                "user_id": "simulated",
                "case_id": row.data_id,
                "left_model": "first",
                "right_model": "second",
                "ours_side": None,
                "choice": "tie" if one == other else "left" if one > other else "right",
                "simulated": True,
            }
        )
    dump(folder / "votes.jsonl", votes)
    return preferred(read_votes(folder / "votes.jsonl").votes, rewrites, "overall", folder / "votes.jsonl")


def share_preferred(folder: Path, pairs: PairedVotes) -> list[float]:
    """1 for each pair whose preferred rewrite is the likelier one per token, else 0."""
    model, tokenizer = load(folder, "cpu")

    def likelihood(source: str, text: str) -> float:
        asked = tokenizer(ASK + messages(source)[-1]["content"] + ANSWER).input_ids
        told = tokenizer(as_completion(source, text) + END).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([[*asked, *told]])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
        return float(logits.gather(1, torch.tensor(told)[:, None]).mean())

    return [
        float(likelihood(each.source, each.chosen) > likelihood(each.source, each.rejected))
        for each in pairs.pairs
    ]


def measure(folder: Path, student: Student, held_out: int) -> dict[str, Any]:
    """Everything, from teaching the student on; `folder` is kept, and what is there already is not made
    again."""
    rows = short_prompts(held_out + 160, student.seed + 7)
    aside, seen = rows[:held_out], rows[held_out:]
    if not (folder / "student" / "model.safetensors").is_file():
        make_student(folder / "student", student)
    seconds: dict[str, float] = {}
    before = answers(folder / "student", aside, PER_PROMPT, 1)
    clock = time.perf_counter()
    grpo = tune_grpo(GRPO, folder / "student", seen, folder / "grpo")
    seconds["grpo"] = time.perf_counter() - clock
    _finished(grpo)
    taught, judged = (
        voted(seen, answers(folder / "student", seen, 2, 2), folder),
        voted(aside, before, folder),
    )
    clock = time.perf_counter()
    dpo = tune_dpo(DPO, folder / "student", taught.pairs, folder / "dpo")
    seconds["dpo"] = time.perf_counter() - clock
    _finished(dpo)
    rewards = form_rewards(aside, before)
    shares = [share_preferred(path, judged) for path in (folder / "student", dpo.model)]
    return {
        "prompts": len(aside),
        "answers_per_prompt": PER_PROMPT,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "grpo": {
            "steps": GRPO.steps,
            "form": compared(rewards, form_rewards(aside, answers(grpo.model, aside, PER_PROMPT, 1))),
        },
        "dpo": {
            "steps": DPO.steps,
            "pairs": len(taught.pairs),
            "simulated_votes": True,
            "left_out": dict(taught.left_out),
            "likelier_is_preferred": compared({"share": shares[0]}, {"share": shares[1]})["share"],
            "form": compared(rewards, form_rewards(aside, answers(dpo.model, aside, PER_PROMPT, 1))),
        },
    }


def _finished(tuned: TuneResult) -> None:
    if tuned.status != "finished":
        raise KeyboardInterrupt(f"stopped after step {tuned.step}; the same command goes on")


def table(found: dict[str, Any]) -> str:
    """The result as text: before -> after, difference with its 95 % interval, n."""
    lines = []
    for algorithm in ("grpo", "dpo"):
        named = {f"form {name}": row for name, row in found[algorithm]["form"].items()}
        named |= (
            {"likelier is preferred": found["dpo"]["likelier_is_preferred"]} if algorithm == "dpo" else {}
        )
        for name, row in named.items():
            change = row["difference"]
            values = f"{row['before']['mean']:.3f} -> {row['after']['mean']:.3f}"
            interval = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            lines.append(f"{algorithm:<5} {name:<22} {values}   {interval}   n = {change['n']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks/rewriter_tuning"))
    parser.add_argument("--held-out", type=int, default=48, help="prompts that are measured on")
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier measurement left")
    parser.add_argument("--to", type=Path, default=Path("docs/rewriter_tuning.json"))
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    found = measure(options.folder, Student(), options.held_out)
    found |= facts()
    write_json(options.to, found, indent=1)
    print(table(found))
    print(f"{json.dumps(found['seconds'])} s; {options.to}")


if __name__ == "__main__":
    main()
