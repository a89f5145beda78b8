"""Encoding on many ranks: unit i of a set belongs to rank i mod world; ranks share only the output folder.

`python -m pretrain.data.encoding.encode_ranks FOLDER/resolved.json` is one rank under torchrun. There is no
process group: a dead rank does not stop the others, and the same command resumes with the missing units on
any number of ranks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.codecs.base import Codecs
from pretrain.codecs.load import load_codecs
from pretrain.config import from_json, to_json
from pretrain.data.encoding.clips import Streams
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.encoding.encode_units import LISTED_EVERY_S, SetEncoder
from pretrain.data.encoding.parts import list_parts
from pretrain.data.encoding.units import split
from pretrain.files import write_json
from pretrain.launch.rank import begin
from pretrain.launch.torchrun import METRICS, report
from pretrain.storage import local_file, place

LogProgress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class SetJob:
    """One manifest (path or URL) to encode. Raises ValueError for a name that is not a plain folder name."""

    name: str
    manifest: str
    video: bool = True
    audio: bool = True

    def __post_init__(self) -> None:
        if not self.name or self.name[0] == "." or not self.name.isprintable() or set(self.name) & set("/\\"):
            raise ValueError(
                f"{self.manifest}: {self.name!r} cannot name a set's folder; give it a name without slashes "
                "or a leading dot"
            )


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Everything a rank needs: set NAME goes to `to`/NAME, which may be in an object store."""

    config: EncodeConfig
    sets: tuple[SetJob, ...]
    codec: str
    to: str
    verify: bool = False  # read what is there again first, and encode anew what is damaged

    def save(self, path: Path) -> None:
        sets = [dataclasses.asdict(job) for job in self.sets]
        write_json(
            path,
            {
                "config": to_json(self.config),
                "sets": sets,
                "codec": self.codec,
                "to": self.to,
                "verify": self.verify,
            },
        )

    @classmethod
    def load(cls, path: Path) -> EncodeJob:
        values = json.loads(path.read_text())
        config = from_json(EncodeConfig, values["config"], "config")
        return cls(**{**values, "config": config, "sets": tuple(SetJob(**job) for job in values["sets"])})


def encode_rank(
    job: EncodeJob,
    rank: int,
    world_size: int,
    log_progress: LogProgress = lambda row: None,
    local_rank: int = 0,
) -> list[str]:
    """This rank's units of every set; the rank that finds all done merges. `log_progress`: overall progress;
    `local_rank`: number of its GPU on this machine.

    Returns the names of the sets that it merged. Raises ValueError or OSError in one line.
    """
    import torch

    # a product's last bits may depend on the thread count; use more ranks instead
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    codecs = load_codecs(job.codec)
    with _encoders(job, codecs) as encoders:
        for encoder in encoders:
            encoder.claim()
            if job.verify:
                _verify(encoder, rank, world_size, log_progress)
        progress, merged = _Progress(encoders, world_size, log_progress), []
        for encoder in encoders:
            todo = encoder.missing(rank, world_size) if not encoder.finished() else []
            for _ in encoder.encode(todo, codecs):
                progress.row(encoder)
            complete = len(list_parts(encoder.folder)) == len(encoder.units)
            if complete and (todo or not encoder.finished()):
                encoder.finish()
                merged.append(encoder.name)
        progress.count()
        progress.show(encoders[-1])
    return merged


def _verify(encoder: SetEncoder, rank: int, world_size: int, log_progress: LogProgress) -> None:
    started, total = time.monotonic(), max(len(list_parts(encoder.folder)), 1)
    for done, _ in enumerate(encoder.verify(rank, world_size), start=1):
        of_all = min(done * world_size, total)
        left_s = (time.monotonic() - started) / of_all * (total - of_all)
        percent = 99 * of_all // total
        seconds = {"step": percent, "seconds_per_step": left_s / (100 - percent)}
        log_progress({**seconds, "task": f"{encoder.name}, checking shards", "rows": of_all, "of": total})


@contextmanager
def _encoders(job: EncodeJob, codecs: Codecs) -> Iterator[list[SetEncoder]]:
    with ExitStack() as stack:
        encoders = []
        for one in job.sets:
            manifest = place(one.manifest)
            units = split(
                stack.enter_context(local_file(manifest)), job.config.rows_per_shard, manifest.parent
            )
            streams = Streams(one.video, one.audio)
            folder = place(job.to) / one.name
            encoders.append(
                SetEncoder(
                    job.config,
                    one.name,
                    one.manifest,
                    units,
                    codecs.codec_id,
                    streams,
                    folder,
                    codecs.audio.channels,
                )
            )
        yield encoders


class _Progress:
    """Rows done by all ranks: those of finished units, and in between as many by each rank as by this one."""

    def __init__(self, encoders: Sequence[SetEncoder], world_size: int, log_progress: LogProgress) -> None:
        self.encoders, self.world_size, self.log_progress = encoders, world_size, log_progress
        self.total = sum(encoder.units.num_rows for encoder in encoders)
        self.before = self.known = self._listed()
        self.since, self.started = 0, time.monotonic()
        self.reported = self.listed = self.started

    def row(self, encoder: SetEncoder) -> None:
        self.since += 1
        if time.monotonic() - self.reported > 1.0:
            self.show(encoder)

    def show(self, encoder: SetEncoder) -> None:
        moment = time.monotonic()
        if moment - self.listed > LISTED_EVERY_S and self._listed() > self.known:
            self.count()
        self.reported = moment
        done = min(self.known + self.since * self.world_size, self.total)
        left_s = (moment - self.started) / max(done - self.before, 1) * (self.total - done)
        percent = 100 * done // self.total
        seconds = {"step": percent, "seconds_per_step": left_s / max(100 - percent, 1)}
        self.log_progress({**seconds, "task": encoder.name, "rows": done, "of": self.total})

    def count(self) -> None:
        """Count what all ranks have finished, instead of an estimate."""
        self.known, self.since, self.listed = self._listed(), 0, time.monotonic()

    def _listed(self) -> int:
        return sum(
            encoder.units.size(unit) for encoder in self.encoders for unit in list_parts(encoder.folder)
        )


def main(path: Path) -> int:
    """Exit code of this rank: 0, or 2 with one line in error.txt.RANK."""
    rank = int(os.environ["RANK"])

    def log_progress(row: Mapping[str, Any]) -> None:
        if rank == 0:
            with (path.parent / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")

    try:
        ranks, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0))
        encode_rank(EncodeJob.load(path), rank, ranks, log_progress, local)
    except (ValueError, OSError) as error:
        report(error, path.parent)
        return 2
    return 0


if __name__ == "__main__":
    begin(Path(sys.argv[1]).parent)
    sys.exit(main(Path(sys.argv[1])))
