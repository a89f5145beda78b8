"""`nava evaluate verse-bench|seed-tts|javisbench`: a model, or clips of any, against a public benchmark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.commands.cases import CaseOptions, MakeCases, PromptOf, make_cases, split_settings
from experiments.commands.options import JsonFlag
from experiments.commands.score import RewardNames
from experiments.layout import Layout

if TYPE_CHECKING:
    from experiments.paper.layouts import BenchItem
    from experiments.paper.run import Benchmark

BenchFolder = Annotated[Path, tyro.conf.Positional]
VERSE_BENCH_DEFAULTS = ("snr_estimate_db", "identity_colour_edge")
SEED_TTS_DEFAULTS = ("snr_estimate_db", "sim_resemblyzer")
AS_THEY_LIE = MakeCases()  # no model, so clips that are there
JAVISBENCH_DEFAULTS = ("snr_estimate_db",)
BenchClips = Annotated[
    Path | None,
    tyro.conf.arg(metavar="FOLDER", help="of the clips: where they lie, or with --model where they are made"),
]
BenchSettings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="set",
        metavar="KEY=VALUE",
        help="REWARD.OPTION=VALUE sets an option of a reward, generate.KEY=VALUE and ray.KEY=VALUE a field "
        "of the recipe that clips are made by; may be given again",
    ),
]


def verse_bench(
    folder: BenchFolder,
    /,
    clips: BenchClips = None,
    making: CaseOptions = AS_THEY_LIE,
    rewards: RewardNames = VERSE_BENCH_DEFAULTS,
    settings: BenchSettings = (),
    to: Path = Path("reports/verse_bench"),
    out: Path = Path("out"),
    as_json: JsonFlag = False,
) -> None:
    """Verse-Bench: FOLDER holds set1, set2 and set3. With --model the clips of its cases are made first; else
    --clips has NAME.mp4 and NAME.wav (FOLDER/generated).

    A case that cannot be made stands in TO/cases.jsonl with its reason and counts as not scored. The same
    command goes on after a kill, clip by clip and score by score; a second run makes and scores nothing.

    --set REWARD.weights=PATH adds a published metric, --rewards adds stand-ins and plug-ins, each under its
      own name. --set generate.KEY=VALUE is for the clips. The table goes to --to, the run to MLflow.

      nava evaluate verse-bench verse_bench --model out/align/model --duration 4 --nproc 8
    """
    from experiments.paper import metrics, published
    from experiments.paper.cases import scene_prompt
    from experiments.paper.layouts import read_verse_bench
    from experiments.paper.run import Benchmark

    asked = _Asked(clips, making, rewards, settings, to, out, as_json)
    items = read_verse_bench(folder, asked.there(folder))
    _run(
        partial(
            Benchmark,
            "Verse-Bench",
            metrics=metrics.VERSE_BENCH,
            paper=published.VERSE_BENCH,
            with_composites=True,
        ),
        items,
        folder,
        asked,
        lambda fps, seconds: scene_prompt,
    )


def seed_tts(
    folder: BenchFolder,
    /,
    clips: BenchClips = None,
    language: Literal["en", "zh"] = "en",
    meta: Path | None = None,
    making: CaseOptions = AS_THEY_LIE,
    rewards: RewardNames = SEED_TTS_DEFAULTS,
    settings: BenchSettings = (),
    to: Path = Path("reports/seed_tts"),
    out: Path = Path("out"),
    as_json: JsonFlag = False,
) -> None:
    """Seed-TTS eval: FOLDER/LANGUAGE/meta.lst (or --meta). With --model the sounds of its cases are made
    first (--task T2A, as long as the prompt's voice would take, or --duration); else --clips has UTT.wav or
    UTT.mp4 (FOLDER/generated).

    A case that cannot be made stands in TO/cases.jsonl with its reason and counts as not scored. WER is in
    percent and SIM x100, as published; they need wer_whisper.weights and sim_wavlm_ecapa.weights (--set).
    """
    from experiments.paper import metrics, published
    from experiments.paper.cases import speech_prompt
    from experiments.paper.layouts import read_seed_tts
    from experiments.paper.run import Benchmark

    inside = folder / language / "meta.lst"
    listing = meta or (
        inside if inside.is_file() or not (folder / "meta.lst").is_file() else folder / "meta.lst"
    )
    asked = _Asked(clips, making, rewards, settings, to, out, as_json)
    items = read_seed_tts(listing, asked.there(folder))
    _run(
        partial(
            Benchmark,
            f"Seed-TTS eval, {language}",
            metrics=metrics.seed_tts(language),
            paper=published.SEED_TTS_EN if language == "en" else {},
            of_sound=True,
        ),
        items,
        folder,
        asked,
        partial(speech_prompt, language),
        "T2A",
    )


def javisbench(
    folder: BenchFolder,
    /,
    clips: BenchClips = None,
    mini: Annotated[
        bool, tyro.conf.arg(help="JavisBench-mini.csv, the 1,000 cases, not JavisBench.csv")
    ] = False,
    making: CaseOptions = AS_THEY_LIE,
    rewards: RewardNames = JAVISBENCH_DEFAULTS,
    settings: BenchSettings = (),
    to: Path = Path("reports/javisbench"),
    out: Path = Path("out"),
    as_json: JsonFlag = False,
) -> None:
    """JavisBench: FOLDER holds JavisBench.csv, or JavisBench-mini.csv with --mini. With --model the clips of
    its rows are made first, from the text as it is; else --clips has sample_0000.mp4 and sample_0000.wav
    (FOLDER/generated).

    A case that cannot be made stands in TO/cases.jsonl with its reason and counts as not scored. FVD, KVD and
    FAD, which compare whole sets with the benchmark's own clips, are not measured.
    """
    from experiments.paper import metrics
    from experiments.paper.cases import text_prompt
    from experiments.paper.javisbench import javisbench_file, read_javisbench
    from experiments.paper.run import Benchmark

    asked = _Asked(clips, making, rewards, settings, to, out, as_json)
    items = read_javisbench(javisbench_file(folder, mini), asked.there(folder))
    name = "JavisBench-mini" if mini else "JavisBench"
    _run(
        partial(Benchmark, name, metrics=metrics.JAVISBENCH, paper={}),
        items,
        folder,
        asked,
        lambda fps, seconds: text_prompt,
    )


@dataclass(frozen=True)
class _Asked:
    """What all benchmarks are asked with."""

    clips: Path | None
    making: MakeCases
    rewards: tuple[str, ...]
    settings: tuple[str, ...]
    to: Path
    out: Path
    as_json: bool

    def there(self, folder: Path) -> Path | None:
        """Where clips lie already; None where they are made first."""
        return None if self.making.model else self.clips or folder / "generated"


def _run(
    benchmark_of: Callable[[Sequence[BenchItem]], Benchmark],
    items: Sequence[BenchItem],
    folder: Path,
    asked: _Asked,
    prompt_of: PromptOf,
    task: str | None = None,
) -> None:
    """Make the clips where a model is given, and score them. Wrong rewards are refused before that."""
    from experiments.paper.metrics import rewards_with_options
    from experiments.scoring.config import settings_from
    from rewards.catalog import open_rewards

    of_recipe, of_rewards = split_settings(asked.settings)
    clips = asked.there(folder)
    if clips is not None:
        asked.making.without_model()
        if of_recipe:
            raise ValueError(
                f"--set {of_recipe[0]}: clips are made by --model only; give it, or leave this out"
            )
    else:
        expected = [replace(item, sound=Path(item.name)).sound_file() for item in items]
        wanted = rewards_with_options(asked.rewards, of_rewards)
        chosen = settings_from(wanted, None, of_rewards, [file for file in expected if file])
        chosen.described()

        def ready() -> None:
            """Weights that are missing are known before hours of making."""
            with open_rewards(chosen.rewards, chosen.options):
                pass

        clips = asked.clips or asked.to / "clips"
        items = make_cases(items, prompt_of, asked.making, of_recipe, clips, asked.to, task, ready)
    _score(benchmark_of(items), clips, replace(asked, settings=of_rewards))


def _score(benchmark: Benchmark, clips: Path, asked: _Asked) -> None:
    """The table of what is scored, in `to` and in a run."""
    from experiments.paper.layouts import left_out
    from experiments.paper.making import CASES
    from experiments.paper.metrics import rewards_with_options
    from experiments.paper.run import measure
    from experiments.paper.tables import markdown, metrics_to_log, write_tables
    from experiments.runs.run import single_run
    from experiments.scoring.config import settings_from
    from rewards.media_folder import left_out_line

    to, by_model = asked.to, asked.making.model is not None
    files = [file for item in benchmark.items if (file := item.sound_file())]
    chosen = settings_from(rewards_with_options(asked.rewards, asked.settings), None, asked.settings, files)
    config = {"benchmark": benchmark.name, "cases": len(benchmark.items), **chosen.described()}
    tags = {"nava.output": str(to)}
    name = f"evaluate {benchmark.name}".lower()
    with single_run(name, config, tags, Layout(out=asked.out), Path()) as tracker:
        lying = {} if by_model else left_out(clips, benchmark.items)
        result = {**measure(benchmark, chosen, to), "left_out": lying}
        paths = write_tables(result, to)
        numbers = metrics_to_log(result)
        tracker.log_metrics(numbers, step=0)
        shown = [name for name in numbers if name.startswith("metrics.") and name.count(".") == 1]
        tracker.describe(f"**{benchmark.name}**\n\n{markdown(result)}", shown)
        tracker.set_tags({"nava.clips_sha256": _digest(result["clip_digests"])})
        for path in (*paths, *sorted(to.glob("scores_*.jsonl")), *(to / CASES,) * by_model):
            tracker.log_artifact(str(path))
    print(json.dumps(result, indent=1, allow_nan=False) if asked.as_json else markdown(result))
    if result["left_out"] and not asked.as_json:
        print(f"{clips}: {left_out_line(result['left_out'])}")


def _digest(clips: dict[str, str]) -> str:
    """One sha256 over all scored clips, which identifies them in the run."""
    return hashlib.sha256(json.dumps(clips, sort_keys=True).encode()).hexdigest()
