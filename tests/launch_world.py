"""A recipe, its data and a pretended Slurm for tests that run what `nava launch` renders."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from titan_world import config, write_latents

from experiments.recipes.base import Recipe

# Starts the command on two "nodes" of this machine, passes signals on and ends like srun: with the highest
# exit code.
SRUN = r"""#!/usr/bin/env bash
echo "srun $*" >> "$CALLS"
while [[ "$1" == --* ]]; do shift; done
ranks=(); codes=0
for node in $(seq 0 $((SLURM_NNODES - 1))); do
  SLURM_NODEID=$node "$@" > "$CALLS.$node" 2>&1 & ranks+=($!)
done
trap 'kill -TERM "${ranks[@]}" 2>/dev/null' TERM
for rank in "${ranks[@]}"; do
  while true; do wait "$rank"; code=$?; kill -0 "$rank" 2>/dev/null || break; done
  ((code > codes)) && codes=$code
done
exit "$codes"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "scontrol $*" >> "$CALLS"; fi
"""


def launched() -> Recipe:
    """Debug sizes, 40 steps, for ranks that start by name: `launch_world.launched`."""
    return Recipe(name="launched", pretrain=config(steps=40, interval=1000))


def write_world(folder: Path) -> dict[str, str]:
    """Latents and a codec's identity in folder/out, commands on a PATH of their own; the environment to run
    scripts in."""
    write_latents(folder / "out" / "latents")
    (folder / "out" / "codec").mkdir()
    (folder / "out" / "codec" / "config.json").write_text(json.dumps({"codec_id": "test-codec"}))
    commands = folder / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    here = Path(__file__).parent
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
        "CALLS": str(folder / "calls"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "first,second",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def preempted(batch: Path, metrics: Path, environment: dict[str, str], within_s: float) -> int:
    """Exit code of a batch job that gets SIGTERM once its training has logged, in the folder of `batch`."""
    job = subprocess.Popen(["bash", str(batch)], env=environment, cwd=batch.parent)
    deadline = time.monotonic() + within_s
    while (
        not (metrics.is_file() and metrics.stat().st_size)
        and job.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    return job.wait(timeout=100)


def requeued(batch: Path, environment: dict[str, str]) -> int:
    """Exit code of the same job started once more, with another rendezvous port."""
    port = re.search(r":(\d+)\"$", batch.read_text(), re.M)
    assert port is not None
    batch.write_text(batch.read_text().replace(port[1], str(free_port())))
    return subprocess.run(["bash", str(batch)], env=environment, cwd=batch.parent, timeout=250).returncode
