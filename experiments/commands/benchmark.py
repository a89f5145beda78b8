"""`nava evaluate verse-bench` and `nava evaluate seed-tts`: clips of any model against a public benchmark."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.commands.options import JsonFlag
from experiments.commands.score import RewardNames, RewardSettings
from experiments.layout import Layout

if TYPE_CHECKING:
    from experiments.paper.run import Benchmark

BenchFolder = Annotated[Path, tyro.conf.Positional]
VERSE_BENCH_DEFAULTS = ("snr_estimate_db", "identity_colour_edge")
SEED_TTS_DEFAULTS = ("snr_estimate_db", "sim_resemblyzer")


def verse_bench(
    folder: BenchFolder,
    /,
    clips: Path | None = None,
    rewards: RewardNames = VERSE_BENCH_DEFAULTS,
    settings: RewardSettings = (),
    to: Path = Path("reports/verse_bench"),
    out: Path = Path("out"),
    as_json: JsonFlag = False,
) -> None:
    """Score clips that answer Verse-Bench: FOLDER holds set1, set2 and set3, --clips NAME.mp4 and NAME.wav
    (FOLDER/generated).

    --set REWARD.weights=PATH adds a published metric, --rewards adds stand-ins and plug-ins, each under its
      own name. The table goes to --to, the run to MLflow. Done scores are kept.
    """
    from experiments.paper import metrics, published
    from experiments.paper.layouts import read_verse_bench
    from experiments.paper.run import Benchmark

    items = read_verse_bench(folder, clips or folder / "generated")
    _run(
        Benchmark("Verse-Bench", items, metrics.VERSE_BENCH, published.VERSE_BENCH, with_composites=True),
        clips or folder / "generated",
        rewards,
        settings,
        to,
        out,
        as_json,
    )


def seed_tts(
    folder: BenchFolder,
    /,
    clips: Path | None = None,
    language: Literal["en", "zh"] = "en",
    meta: Path | None = None,
    rewards: RewardNames = SEED_TTS_DEFAULTS,
    settings: RewardSettings = (),
    to: Path = Path("reports/seed_tts"),
    out: Path = Path("out"),
    as_json: JsonFlag = False,
) -> None:
    """Score sounds that answer Seed-TTS eval: FOLDER/LANGUAGE/meta.lst (or --meta), --clips UTT.wav or
    UTT.mp4 (FOLDER/generated).

    WER is in percent and SIM x100, as published; they need wer_whisper.weights and sim_wavlm_ecapa.weights
    (--set).
    """
    from experiments.paper import metrics, published
    from experiments.paper.layouts import read_seed_tts
    from experiments.paper.run import Benchmark

    inside = folder / language / "meta.lst"
    listing = meta or (
        inside if inside.is_file() or not (folder / "meta.lst").is_file() else folder / "meta.lst"
    )
    items = read_seed_tts(listing, clips or folder / "generated")
    benchmark = Benchmark(
        f"Seed-TTS eval, {language}",
        items,
        metrics.seed_tts(language),
        published.SEED_TTS_EN if language == "en" else {},
        of_sound=True,
    )
    _run(benchmark, clips or folder / "generated", rewards, settings, to, out, as_json)


def _run(
    benchmark: Benchmark,
    clips: Path,
    rewards: tuple[str, ...],
    settings: tuple[str, ...],
    to: Path,
    out: Path,
    as_json: bool,
) -> None:
    from experiments.paper.layouts import left_out
    from experiments.paper.metrics import rewards_with_options
    from experiments.paper.run import measure
    from experiments.paper.tables import markdown, metrics_to_log, write_tables
    from experiments.runs.run import single_run
    from experiments.scoring.config import settings_from
    from rewards.media_folder import left_out_line

    files = [file for item in benchmark.items if (file := item.sound_file())]
    chosen = settings_from(rewards_with_options(rewards, settings), None, settings, files)
    config = {"benchmark": benchmark.name, "cases": len(benchmark.items), **chosen.described()}
    tags = {"nava.output": str(to)}
    name = f"evaluate {benchmark.name}".lower()
    with single_run(name, config, tags, Layout(out=out), Path()) as tracker:
        result = {**measure(benchmark, chosen, to), "left_out": left_out(clips, benchmark.items)}
        paths = write_tables(result, to)
        numbers = metrics_to_log(result)
        tracker.log_metrics(numbers, step=0)
        shown = [name for name in numbers if name.startswith("metrics.") and name.count(".") == 1]
        tracker.describe(f"**{benchmark.name}**\n\n{markdown(result)}", shown)
        tracker.set_tags({"nava.clips_sha256": _digest(result["clip_digests"])})
        for path in (*paths, *sorted(to.glob("scores_*.jsonl"))):
            tracker.log_artifact(str(path))
    print(json.dumps(result, indent=1, allow_nan=False) if as_json else markdown(result))
    if result["left_out"] and not as_json:
        print(f"{clips}: {left_out_line(result['left_out'])}")


def _digest(clips: dict[str, str]) -> str:
    """One sha256 over all scored clips, which identifies them in the run."""
    return hashlib.sha256(json.dumps(clips, sort_keys=True).encode()).hexdigest()
