"""Votes for tests: drawn from a known Bradley-Terry-Davidson model, or given one by one."""

import json

import numpy as np

from finetune.gsb.votes import Vote


def vote(choice="left", *, user="u", case="c", left="ours", right="base", ours="ours", **rest):
    side = "left" if left == ours else "right" if right == ours else None
    return Vote(
        user_id=user, case_id=case, left_model=left, right_model=right, choice=choice, ours_side=side, **rest
    )


def row(
    choice="left",
    *,
    user="u",
    case: str | int = "c",
    left="ours",
    right="base",
    side: str | None = "left",
    **rest,
):
    """One line of the public format as a dict."""
    return {
        "user_id": user,
        "left_model": left,
        "right_model": right,
        "choice": choice,
        "ours_side": side,
        "case_id": case,
        **rest,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def simulated_rows(num_votes, strength, nu, side, *, users=20, seed=0, **rest):
    """Independent votes between ours and every other model, random sides; one vote per case."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(num_votes):
        other = list(strength)[1 + index % (len(strength) - 1)]
        left, right = ("ours", other) if rng.random() < 0.5 else (other, "ours")
        d = strength[left] - strength[right] + side
        weights = np.array([np.exp(d / 2), nu, np.exp(-d / 2)])
        choice = ("left", "tie", "right")[rng.choice(3, p=weights / weights.sum())]
        where = "left" if left == "ours" else "right"
        rows.append(
            row(
                choice,
                user=f"u{index % users}",
                case=f"c{index}",
                left=left,
                right=right,
                side=where,
                simulated=True,
                **rest,
            )
        )
    return rows
