"""Slurm launcher: an sbatch script that requeues itself after preemption or timeout."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from experiments.jobs.request import RENDEZVOUS_PORT, Request

_WORD = re.compile(r"[A-Za-z0-9_.:,/@%+=\[\]-]+")


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Settings of a site; "" = the site's default. Raises ValueError for values invalid in #SBATCH lines."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""  # days-hours:minutes:seconds
    constraint: str = ""
    cpus_per_task: int = 0  # of the job and of its step
    log: str = "%x-%j.log"
    image: str = ""  # of srun's --container-image (pyxis)
    mounts: str = ""  # of --container-mounts

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "time", "constraint", "log"):
            value = getattr(self, name)
            if value and not _WORD.fullmatch(value):
                raise ValueError(f"--{name} {value!r}: letters, digits and _.:,/@%+=[]- only")
        if self.cpus_per_task < 0:
            raise ValueError(f"--cpus-per-task must not be negative, got {self.cpus_per_task}")


def render(request: Request, options: SlurmOptions) -> str:
    """Render the script. Only the batch shell gets the signal.

    It forwards the signal to the ranks, waits for their checkpoint, and requeues the job. Only jobs that
    stopped on request are requeued (exit code 130 of `nava`, or of a signal), never those with a user error.
    """
    meeting = (
        f'rendezvous="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):{RENDEZVOUS_PORT}"\n'
        if request.nodes > 1
        else ""
    )
    return f"""#!/usr/bin/env bash
{_directives(request, options)}
set -uo pipefail
{request.preamble()}
{meeting}asked="" running=""
trap 'asked=yes; if [ -n "$running" ]; then kill -TERM "$running"; fi' TERM
{_srun(request, options)} &
running=$!
code=0
wait "$running" || code=$?
while kill -0 "$running" 2>/dev/null; do
    code=0
    wait "$running" || code=$?
done
if [ -n "$asked" ] && [ "$code" -ge 128 ]; then
    echo "stopped with a checkpoint (exit code $code); requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def _directives(request: Request, options: SlurmOptions) -> str:
    given = {
        "job-name": request.name,
        "nodes": str(request.nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(request.gpus_per_node),
        "cpus-per-task": str(options.cpus_per_task or ""),
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "time": options.time,
        "output": options.log,
        "open-mode": "append",
        "signal": f"B:TERM@{request.grace_s}",
        # by name: their values are taken from the environment of sbatch, whatever the site exports by default
        "export": ",".join(["ALL", *request.passed]) if request.passed else "",
    }
    return "\n".join(
        [f"#SBATCH --{name}={value}" for name, value in given.items() if value] + ["#SBATCH --requeue"]
    )


def _srun(request: Request, options: SlurmOptions) -> str:
    # since Slurm 22.05 a step does not take it from the job
    cpus = [f"--cpus-per-task={options.cpus_per_task}"] if options.cpus_per_task else []
    container = [f"--container-image={options.image}"] if options.image else []
    if options.mounts:
        container.append(f"--container-mounts={options.mounts}")
    return f"{shlex.join(['srun', '--kill-on-bad-exit=1', *cpus, *container])} {request.command()}"
