"""What the training log's measurements of speed and memory cost:
`python -m experiments.benchmarks.telemetry_cost --out FILE`.

One process trains `mini` by the real trainer, with a row every step where a training has one every ten. Steps
are taken in pairs, one with the measurements and one with them taken out, in alternating order. Times are the
processor's, which the machine's other work hardly moves. Two numbers come of it: the ratio of the steps'
seconds, and the seconds of the measurements alone as a share of a step's.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from experiments.benchmarks.harness import facts, make_parser, parse, ratio, summary, write
from experiments.benchmarks.random_model import latent_sizes, random_clip
from pretrain.data.stream.loader import SampleSet
from pretrain.dry_run import one_step
from pretrain.launch.stage_run import StageRun
from pretrain.model.flavors import flavor
from pretrain.model.plan import clip_shape
from pretrain.recipe import PretrainConfig
from pretrain.titan import trainer
from pretrain.titan.step_flops import batch_flops
from pretrain.titan.trainer import PretrainTrainer
from pretrain.titan.window import Window

CLIPS, FRAMES, SIDE = 16, 25, 64  # of a rank of the demo
WARM_UP = 2


class _Plain(Window):
    """A window without quantiles."""

    def summary(self, num_ranks: int = 1) -> dict[str, float | str]:
        with mock.patch.object(np, "quantile", lambda values, at: np.zeros(3)):
            return super().summary(num_ranks)


class Measured(PretrainTrainer):
    """Takes steps with the measurements or without them, and times what they take themselves."""

    def first(self) -> None:
        """Before the first step."""
        assert self.dataloader is not None
        self.batches, self.own_s, self.own_steps = self.batch_generator(self.dataloader), 0.0, 0

    def take(self, measuring: bool) -> float:
        """Processor seconds of a step."""
        self.step += 1
        begin = time.process_time()
        with ExitStack() as changed:
            if not measuring:
                changed.enter_context(mock.patch.object(trainer, "batch_flops", lambda *_: 0))
                changed.enter_context(mock.patch.object(self.telemetry, "row", lambda *_: {}))
                self.window = _Plain()
            self.train_step(self.batches)
        self.window = Window()
        return time.process_time() - begin

    def alone(self, repeats: int) -> float:
        """Processor seconds of all measurements of one step and its row, the mean of `repeats`."""
        batch = self._corrupted(*next(self.batches))
        self.telemetry.waited()
        results = []
        real = self.window.add
        with mock.patch.object(
            self.window, "add", lambda result, ended: (results.append((result, ended)), real(result, ended))
        ):
            self.step += 1
            self.train_step(self.batches)
        (result, ended), begin = results[0], time.process_time()
        for _ in range(repeats):
            batch_flops(flavor(self.run.config.flavor), batch.corrupted)
            self.telemetry.waited()
            window = Window()
            window.add(result, ended)
            window.summary(1)
            self.telemetry.row(window.take(), 1.0, 0.0)
            self.checkpointer.times.take().row()
        return (time.process_time() - begin) / repeats


def measure(pairs: int) -> dict[str, Any]:
    """Both numbers of a training of one rank on a CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    config = one_step(PretrainConfig(flavor="mini"), 1)
    stage = replace(config.stage("stage1"), steps=10 * pairs + 100)
    config = replace(
        config, global_batch_size=CLIPS, local_batch_size=CLIPS, log_every=1, stages={"stage1": stage}
    )
    args = flavor("mini")
    clip = random_clip(args, clip_shape(args, FRAMES, SIDE, SIDE), latent_sizes(FRAMES, SIDE, SIDE))
    with tempfile.TemporaryDirectory() as folder:
        run = StageRun(config=config, stage="stage1", latents=Path(folder), out=Path(folder))
        trained = Measured(run, {"dry": SampleSet("dry", [clip])}, lambda metrics, step: None)
        trained.first()
        for _ in range(WARM_UP):
            trained.take(True)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        began = time.process_time()
        for pair in range(pairs):
            for measuring in (True, False) if pair % 2 else (False, True):
                seconds[measuring].append(trained.take(measuring))
        step_s = (time.process_time() - began) / (2 * pairs)
        own_s = trained.alone(200)
        trained.close()
    return {
        "steps": {"with": summary(seconds[True]), "without": summary(seconds[False])},
        "with_over_without": ratio(seconds[False], seconds[True]),
        "processor_s_of_a_step": float(f"{step_s:.4g}"),
        "processor_s_of_the_measurements": float(f"{own_s:.4g}"),
        "share_percent": float(f"{100 * own_s / step_s:.3g}"),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="of steps")
    options = parse(parser)
    found = facts("torchtitan") | {"clips": CLIPS, "frames": FRAMES, "side": SIDE, "rows": "every step"}
    found |= measure(options.pairs)
    print(f"the measurements take {found['share_percent']} % of a step's processor time")
    low, high = found["with_over_without"]["low"], found["with_over_without"]["high"]
    print(f"steps with them take {found['with_over_without']['ratio']} times as long (95 % {low} to {high})")
    write(found, options.out)


if __name__ == "__main__":
    main()
