"""What alignment must reach, held against `reports/alignment.json`: the same verdicts for the terminal and
for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.report.before_after import Verdict

CLOSED = {
    "wer_pocketsphinx_judge": 0.5,
    "sync_judge": 0.3,
}  # least share of the gap to the codec's round trip
VOICE = "sim_resemblyzer"
Found = Mapping[str, Any]  # what `evaluate` wrote


def alignment_verdicts(found: Found) -> list[Verdict]:
    """Gaps closed by the judges' measure, nothing beyond the codec, the voice kept, raters in favour, no clip
    more beyond a guardrail."""
    gaps = [_closed(found, metric, least) for metric, least in CLOSED.items()]
    return [*gaps, _hacked(found), _voice(found), _raters(found), _flagged(found)]


def beyond_codec(found: Found) -> list[str]:
    """Metrics that ended beyond the codec's interval by alignment: from within it, or further (95 %) from
    where they were.

    A weak estimate can read a blurred clip as better than real ones before any alignment; that alone is no
    hacking.
    """
    return [
        name for name, metric in found["metrics"].items() if metric["beyond_codec"] and _moved_there(metric)
    ]


def beyond_from_the_start(found: Found) -> list[str]:
    """Metrics beyond the codec's interval before and after alignment that alignment did not push further."""
    return [
        name
        for name, metric in found["metrics"].items()
        if metric["beyond_codec"] and not _moved_there(metric)
    ]


def _moved_there(metric: Found) -> bool:
    difference = metric["difference"]
    further = difference["high"] < 0 if metric["better"] == "lower" else difference["low"] > 0
    return not metric["beyond_codec_before"] or further


def _closed(found: Found, metric: str, least: float) -> Verdict:
    share = found["metrics"].get(metric, {}).get("closed")
    what, limit = f"share of the gap closed, {metric}", f"at least {least:.2f}, interval above 0"
    if share is None or share["mean"] is None:
        return Verdict(what, None, limit, None, 0)
    met = share["mean"] >= least and share["low"] > 0
    return Verdict(
        what, share["mean"], limit, met, share["n"], interval=(share["low"], share["high"]), counted="prompts"
    )


def _hacked(found: Found) -> Verdict:
    names = beyond_codec(found)
    limit = "none" + (f" (are: {', '.join(names)})" if names else "")
    return Verdict(
        "metrics driven beyond the codec's interval",
        len(names),
        limit,
        not names,
        len(found["metrics"]),
        counted="metrics",
    )


def _voice(found: Found) -> Verdict:
    what, limit = f"change of {VOICE}", "95 % interval not wholly below 0"
    metric = found["metrics"].get(VOICE)
    if metric is None:
        return Verdict(what, None, limit, None, 0)
    change = metric["difference"]
    return Verdict(
        what,
        change["mean"],
        limit,
        change["high"] >= 0,
        change["n"],
        interval=(change["low"], change["high"]),
        counted="prompts",
    )


def _raters(found: Found) -> Verdict:
    what, limit = "GSB of SIMULATED RATERS, overall", "above 0, interval above 0"
    gsb = found.get("raters", {}).get("gsb", {}).get("overall")
    if gsb is None:
        return Verdict(what, None, limit, None, 0, counted="votes")
    votes = gsb["good"] + gsb["same"] + gsb["bad"]
    return Verdict(
        what,
        gsb["gsb"],
        limit,
        gsb["gsb_low"] > 0,
        votes,
        interval=(gsb["gsb_low"], gsb["gsb_high"]),
        counted="votes",
    )


def _flagged(found: Found) -> Verdict:
    """Judged for each guardrail, so that one cannot pay for another."""
    worse = [
        name
        for name, guard in found["guardrails"].items()
        if guard["flagged_after"] > guard["flagged_before"]
    ]
    limit = f"none more than before ({found['flagged']['before']})" + (
        f"; more: {', '.join(worse)}" if worse else ""
    )
    after = found["flagged"]["after"]
    return Verdict("clips beyond a guardrail after alignment", after, limit, not worse, found["prompts"])
