"""`nava prepare`: raw videos to training rows."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.commands.align import RayCluster, address_of
from experiments.commands.options import InsecureRay, JsonFlag, SetOptions
from experiments.errors import CHECK_FAILED

if TYPE_CHECKING:
    from experiments.preparation.pool import SourceWorkers
    from experiments.preparation.services import Services
    from experiments.preparation.source_work import Settings

RawVideos = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="VIDEOS", help="folder, 'pattern*.mp4', list of paths, one video, CSV or JSONL"),
]
SetPlace = Annotated[
    Path, tyro.conf.arg(metavar="OUT", help="folder of the set; replaced only if made by this verb")
]
RecipeOption = Annotated[
    str, tyro.conf.arg(help="whose frame rate, lengths (encode) and limits (prepare) count")
]
Processes = Annotated[int, tyro.conf.arg(help="processes; 0 = one for each processor")]
TriedVideos = Annotated[
    int, tyro.conf.arg(metavar="N", help="try N videos, predict yield and hours, write nothing")
]
SyncPlace = Annotated[
    Path | None,
    tyro.conf.arg(help="folder of `nava syncnet` or syncnet_v2.model: speech that no face says is rejected"),
]
YuNetPlace = Annotated[Path | None, tyro.conf.arg(help="YuNet's ONNX file, a better face detector")]
WhisperPlace = Annotated[Path | None, tyro.conf.arg(help="folder of a Whisper model that hears the words")]
WordsServer = Annotated[
    str,
    tyro.conf.arg(metavar="URL", help="server with OpenAI's transcription interface that hears the words"),
]
CaptionServer = Annotated[
    str,
    tyro.conf.arg(metavar="URL", help="server with OpenAI's chat interface and a model that sees pictures"),
]
TokenName = Annotated[
    str, tyro.conf.arg(metavar="NAME", help="environment variable with the bearer token of these servers")
]


def prepare(
    videos: RawVideos,
    /,
    to: SetPlace,
    recipe: RecipeOption = "mini",
    settings: SetOptions = (),
    nproc: Processes = 0,
    ray: RayCluster = None,
    insecure_ray: InsecureRay = False,
    dry_run: TriedVideos = 0,
    syncnet: SyncPlace = None,
    yunet: YuNetPlace = None,
    whisper: WhisperPlace = None,
    transcribe: WordsServer = "",
    transcribe_model: str = "",
    language: str = "en",
    caption: CaptionServer = "",
    caption_model: str = "",
    token_variable: TokenName = "",
    as_json: JsonFlag = False,
) -> int:
    """Cut raw videos into clips with speech spans, times, reference voices and labels: training rows.

    OUT gets manifest.jsonl (read by `nava encode --manifest`, `nava pretrain`, `nava finetune`), clips/,
    references/, rejected.jsonl (stage, measure, limit and reason of each), summary.json and report.html.

    Texts beside a video count: clip.srt or clip.vtt; clip.txt, a caption with <S>speech<E> in it, or a
    transcript, which is aligned where it fits what is heard. A CSV, JSONL or `datasets` folder has columns
    file_name, text and, as there are, transcript, speaker, reference, speech_start, speech_end.

    An interrupted run goes on by the same command: results by video are kept in .OUT.work beside OUT.
    --ray works by Ray Data, embedded or on a cluster whose machines see videos and OUT under the same paths;
    --nproc is how many videos are worked on at once. The rows are the same, byte for byte, for any workers.
    Original files are only read. Limits are the recipe's section `prepare`: --set prepare.max_s=5.

    Exit code: 0; 1 where no clip is kept; 2 for a wrong input.
    """
    from experiments.preparation.services import Services

    if dry_run < 0 or nproc < 0:
        raise ValueError(f"--dry-run {dry_run}, --nproc {nproc}: expected at least 0")
    chosen = _settings(recipe, settings)
    asked = Services(
        syncnet=syncnet,
        yunet=yunet,
        transcribe=transcribe,
        transcribe_model=transcribe_model,
        whisper=whisper,
        language=language,
        caption=caption,
        caption_model=caption_model,
        token_variable=token_variable,
    )
    where = _Place(videos, to, address_of(ray), insecure_ray, nproc)
    if dry_run:
        return _try(where, dry_run, chosen, asked, as_json)
    return _prepare(where, recipe, chosen, asked, as_json)


@dataclass(frozen=True)
class _Place:
    videos: str
    to: Path
    address: str  # of Ray, "" = without
    insecure: bool
    nproc: int

    @property
    def is_cluster(self) -> bool:
        return self.address not in ("", "local")


def _prepare(where: _Place, recipe: str, settings: Settings, services: Services, as_json: bool) -> int:
    from experiments.preparation.prepare import prepare_set

    begun_s = time.monotonic()
    with _workers(where, settings, services) as workers:
        summary = prepare_set(where.videos, where.to, settings, services, workers).summary
    seconds = time.monotonic() - begun_s
    _record(where.videos, where.to, recipe, settings, services, summary, seconds)
    return _tell(summary, where.to, as_json)


def _try(where: _Place, count: int, settings: Settings, services: Services, as_json: bool) -> int:
    from experiments.preparation.prepare import predict

    scratch = where.to.absolute().parent if where.is_cluster else None
    with _workers(where, settings, services) as workers:
        _tell_trial(predict(where.videos, count, settings, services, workers, scratch), as_json)
    return 0


@contextmanager
def _workers(where: _Place, settings: Settings, services: Services) -> Iterator[int | SourceWorkers]:
    if not where.address:
        yield where.nproc or os.cpu_count() or 1
        return
    from experiments.preparation.prepare import check_inputs
    from orchestration.preparation import ray_workers

    # before Ray, which takes seconds to start
    found = check_inputs(where.videos, where.to, settings, services)
    with ray_workers(where.address, where.nproc, where.insecure) as workers:
        if where.is_cluster:
            models = (services.syncnet, services.yunet, services.whisper)
            above = next(folder for folder in where.to.absolute().parents if folder.is_dir())
            first = [source.path for source in found.sources[:1]]
            workers.check_paths([*first, above, *filter(None, models)])
        yield workers


def _settings(recipe: str, settings: tuple[str, ...]) -> Settings:
    from experiments.commands.options import recipe_for
    from experiments.preparation.source_work import Settings

    loaded = recipe_for(recipe, settings)
    return Settings(loaded.prepare, loaded.encode.fps, tuple(loaded.encode.buckets.frames))


def _record(
    videos: str,
    to: Path,
    recipe: str,
    settings: Settings,
    services: Services,
    summary: Mapping[str, Any],
    seconds: float,
) -> None:
    """The preparation as a run with its inputs, numbers and the page."""
    from experiments.layout import Layout
    from experiments.recipes.load import as_plain
    from experiments.runs.inputs import digests_of_inputs
    from experiments.runs.run import record_run
    from experiments.runs.tracker import SpoolTracker

    def log(tracker: SpoolTracker) -> None:
        numbers = {name: float(summary[name]) for name in ("sources", "clips", "kept_seconds", "speakers")}
        rejected = {f"rejected/{stage}": float(count) for stage, count in summary["rejected"].items()}
        speeds = {f"speed/{name}": value for name, value in summary["video_seconds_per_core_second"].items()}
        tracker.log_metrics({**numbers, **rejected, **speeds}, step=0)

    config = {"prepare": as_plain(settings.config), "fps": settings.fps, "services": as_plain(services)}
    places = (Path(videos), services.syncnet, services.yunet, services.whisper)
    tags = {"nava.recipe": recipe, "nava.output": str(to)}
    inputs = digests_of_inputs(*places)
    record_run("prepare", config, tags, Layout(), Path(), inputs, [to], seconds, whole=True, log=log)


def _tell(summary: Mapping[str, Any], to: Path, as_json: bool) -> int:
    """Prints what came of it; the exit code."""
    if as_json:
        print(json.dumps(summary, indent=1, default=str))
    else:
        _show(summary, to)
    if summary["clips"]:
        return 0
    print(f"nava: no clip was kept; {to / 'rejected.jsonl'} says why", file=sys.stderr)
    return CHECK_FAILED


def _show(summary: Mapping[str, Any], to: Path) -> None:
    kept, of = summary["kept_seconds"], summary["source_seconds"]
    print(f"{to}: {summary['clips']} clips, {kept:.1f} s of {of:.1f} s in {summary['sources']} videos")
    print(
        f"speakers {summary['speakers']}, clips with a reference {summary['with_reference']}, faces that "
        f"speak: {summary['speaking_faces']}"
    )
    for stage, count in summary["rejected"].items():
        print(f"rejected by {stage}: {count}")
    for stage, speed in summary["video_seconds_per_core_second"].items():
        slowest = " (slowest)" if stage == summary["slowest"] else ""
        print(f"{stage}: {speed:g} s of video per core-second{slowest}")
    if summary["left_out"]:
        from rewards.media_folder import left_out_line

        print(left_out_line(summary["left_out"]))
    print(f"look at {to / 'report.html'}")


def _tell_trial(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"tried {found['tried']} of {found['of']} videos: {found['kept_share']:.0%} of the time is kept; all "
        f"would give about {found['kept_clips']} clips, {found['kept_hours']:.2f} h, in "
        f"{found['hours_of_work']:.2f} h"
    )
    for stage, count in found["rejected"].items():
        print(f"rejected by {stage}: {count}")
