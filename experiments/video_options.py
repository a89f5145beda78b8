"""The options of `nava serve generate`, as the command line has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

Adapters = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="adapter",
        metavar="NAME=FOLDER",
        help="LoRA adapter of the model that requests may name; may be given again",
    ),
]
VideoLimits = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="limit",
        metavar="NAME=NUMBER",
        help="override a limit of orchestration/generation_service/limits.py or of "
        "orchestration/service/limits.py; may be given again",
    ),
]


@dataclass(frozen=True)
class VideoServing:
    """What is served, and by how many."""

    model: Annotated[
        Path, tyro.conf.arg(metavar="FOLDER", help="exported model, or models:/NAME@ALIAS or /VERSION")
    ] = Path("out/align/model")
    codec: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FOLDER", help="default out/codec, or that of a registered model"),
    ] = None
    name: Annotated[str, tyro.conf.arg(help="of the model in requests; default: its folder's")] = ""
    adapters: Adapters = ()
    limits: VideoLimits = ()
    workers: Annotated[int, tyro.conf.arg(help="processes with the model")] = 1
    batch: Annotated[int, tyro.conf.arg(help="clips that are made at once, at most")] = 8
    resident: Annotated[
        int, tyro.conf.arg(help="models with other adapters merged in that a worker keeps in memory")
    ] = 1
    cpus: Annotated[float, tyro.conf.arg(help="of Ray, reserved for each worker")] = 0.0
    gpus: Annotated[float, tyro.conf.arg(help="of Ray, for each worker: 1 for a GPU of its own")] = 0.0
    threads: Annotated[int, tyro.conf.arg(help="of each worker on a CPU; 0 = its share of the cores")] = 0
    niceness: Annotated[
        int, tyro.conf.arg(help="by which workers give way to the service's answers, 0 to 19")
    ] = 5
    fail_waiting: Annotated[
        bool,
        tyro.conf.arg(
            help="jobs that wait for another model, or for an adapter that is not given, fail with that "
            "reason; without it the service does not start over them"
        ),
    ] = False

    def check_numbers(self) -> None:
        """Raises ValueError in one line."""
        for name in ("workers", "batch", "resident"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("cpus", "gpus", "threads"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.niceness <= 19:
            raise ValueError(f"--niceness: expected 0 to 19, got {self.niceness}")

    def named_adapters(self) -> dict[str, Path]:
        """Folders as given, by name. Raises ValueError in one line."""
        from pretrain.prompt.names import name_problem

        found: dict[str, Path] = {}
        for given in self.adapters:
            name, equals, folder = given.partition("=")
            if not (equals and folder) or name in found or name_problem(name) or "," in name:
                raise ValueError(
                    f"--adapter {given}: expected NAME=FOLDER, each name once, such as look=my/adapter"
                )
            found[name] = Path(folder)
        return found
