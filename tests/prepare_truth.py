"""Measures `nava prepare` on made videos with known truth: `python tests/prepare_truth.py --syncnet FOLDER`.

Prints one table of what is measured beside its limit, and writes it with date, cores and sizes to --json.
Exit code 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from truth_film import DEVELOPMENT_DRAW, Film
from truth_scores import (
    copies,
    cut_words,
    offered_clips,
    overlays,
    read_results,
    scene_f1,
    seen_speaking,
    speakers,
    word_times,
)
from truth_videos import make_set, write_truth

from experiments.preparation.config import PrepareConfig
from experiments.preparation.prepare import prepare_set, work_folder
from experiments.preparation.services import Services
from experiments.preparation.source_work import Settings
from pretrain.files import write_json


def main() -> int:
    asked = _arguments()
    Film.draw = asked.draw
    settings = Settings(PrepareConfig(**dict(map(_setting, asked.set))), 24.0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(asked.work or scratch)
        truths = make_set(folder / "raw", asked.real and _real(Path(asked.real)))
        write_truth(truths, folder / "truth.json")
        out = folder / "set"
        shutil.rmtree(work_folder(out), ignore_errors=True)
        services = Services(syncnet=asked.syncnet and Path(asked.syncnet))
        begun_s = time.monotonic()
        assembled = prepare_set(str(folder / "raw"), out, settings, services, asked.nproc)
        seconds = time.monotonic() - begun_s
        results = read_results(work_folder(out))
        measured = measure(truths, assembled.rows, assembled.rejected, results)
    measured["throughput"] = _throughput(assembled.summary)
    measured["set"] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "draw": asked.draw,
        "processes": asked.nproc,
        "videos": len(truths),
        "video_seconds": round(sum(result["seconds"] for result in results.values()), 1),
        "clips_cut": len(offered_clips(results)),
        "rows": len(assembled.rows),
        "rejected": assembled.summary["rejected"],
        "recordings": bool(asked.real),
        "sync_network": bool(asked.syncnet),
        "seconds": round(seconds, 1),
    }
    if asked.json:
        write_json(Path(asked.json), measured, indent=1)
    return show(measured)


def measure(
    truths: dict[str, Any],
    rows: list[dict[str, Any]],
    rejected: list[dict[str, Any]],
    results: dict[str, Any],
) -> dict[str, Any]:
    clips = offered_clips(results)
    return {
        "scenes": scene_f1(truths, results),
        "seen_speaking": seen_speaking(truths, rows, clips),
        "words": word_times(truths, results),
        "speakers": speakers(truths, rows),
        "copies": copies(truths, rows, rejected),
        "overlays": overlays(truths, rows, clips),
        "cut_words": cut_words(truths, clips),
    }


def show(measured: dict[str, Any]) -> int:
    """Prints the table; 1 where a limit is missed."""
    seen, words, told = measured["seen_speaking"], measured["words"], measured["speakers"]
    lines: list[tuple[str, Any, str, bool | None]] = [
        ("videos, seconds", f"{measured['set']['videos']}, {measured['set']['video_seconds']}", "", None),
        _line("scene boundaries within 2 pictures, F1", measured["scenes"]["f1"], 0.95, at_least=True),
        _line("unseen speech kept as a speaking face, of its clips", seen["unseen_kept_share"], 0.02),
        ("  clips with unseen speech", f"{seen['unseen_kept']} of {seen['unseen_clips']}", "", None),
        ("  clips with seen speech kept", f"{seen['seen_kept']} of {seen['seen_clips']}", "", None),
        _line(
            "words of given texts start within 100 ms",
            words["aligned_start_within_100_ms"],
            0.9,
            at_least=True,
        ),
        _line("all words start within 100 ms", words["all_start_within_100_ms"], 0.9, at_least=True),
        *((f"  word error, {by}", found["wer"], "", None) for by, found in words["word_error"].items()),
        _line("speakers of spans right", told["right"], 0.95, at_least=True),
        ("  speakers found, there", f"{told['speakers_found']}, {told['speakers_there']}", "", None),
        _line("clips with text on the picture kept", len(measured["overlays"]["kept"]), 0),
        ("  clips without text rejected for it", len(measured["overlays"]["wrongly_rejected"]), "", None),
        _line("clips of copies left beside their originals", len(measured["copies"]["missed"]), 0),
        _line("clips cut inside a word", len(measured["cut_words"]), 0),
        *(
            (f"  {stage}: s of video per core-second", speed, "", None)
            for stage, speed in measured["throughput"]["stages"].items()
        ),
        ("slowest stage", measured["throughput"]["slowest"], "", None),
        ("all stages: s of video per core-second", measured["throughput"]["all"], "", None),
    ]
    for name, value, limit, good in lines:
        print(f"{name:55} {value!s:>12}  {limit:8} {'' if good is None else 'ok' if good else 'MISSED'}")
    for kind in ("scenes", "copies"):
        for one in measured[kind].get("wrong", measured[kind].get("missed", [])):
            print(f"{kind}: {one}")
    for one in [*seen["named"], *measured["cut_words"]]:
        print(f"wrong: {one}")
    return int(any(good is False for *_, good in lines))


def _line(name: str, value: float, limit: float, at_least: bool = False) -> tuple[str, Any, str, bool | None]:
    check: Callable[[float], bool] = (lambda x: x >= limit) if at_least else (lambda x: x <= limit)
    return name, value, f"{'>=' if at_least else '<='} {limit:g}", check(value)


def _throughput(summary: dict[str, Any]) -> dict[str, Any]:
    spent = sum(summary["stage_seconds"].values())
    return {
        "stages": summary["video_seconds_per_core_second"],
        "slowest": summary["slowest"],
        "all": round(summary["source_seconds"] / spent, 2),
    }


def _real(folder: Path) -> Path:
    from truth_real import fetch

    return fetch(folder)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--syncnet", help="folder of a sync network (out/syncnet/judge); none: faces not checked"
    )
    parser.add_argument("--real", help="folder to which recordings of packages are fetched (pip, apt-get)")
    parser.add_argument(
        "--draw",
        type=int,
        default=DEVELOPMENT_DRAW,
        help="of what is said and seen; limits were chosen on the default",
    )
    parser.add_argument("--work", help="folder to keep videos and results in; a temporary one by default")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--nproc", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="of the section prepare"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
