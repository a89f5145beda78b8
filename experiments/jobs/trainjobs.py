"""A cluster's TrainJobs, as `kubectl` tells of them: none is started into the folder of one that runs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from experiments.jobs.kubernetes import PLACE, KubernetesOptions
from experiments.jobs.request import Request

KIND = "trainjobs.trainer.kubeflow.org"
ASK_S = 20
ENDS = ("Complete", "Failed")  # conditions of a TrainJob that trains no more


def check_free(request: Request, options: KubernetesOptions, rendered: str) -> None:
    """Raises ValueError in one line where a TrainJob that has not ended trains into the same folder.

    rendered: what would be submitted. Where `kubectl` may not list TrainJobs, a note says so.
    """
    ours = yaml.safe_load(rendered)
    for job in _trainjobs(options.namespace):
        if _is_same(job, ours, request) and not _has_ended(job):
            name = job["metadata"]["name"]
            command = f"kubectl --namespace {shlex.quote(options.namespace)}"
            raise ValueError(
                f"TrainJob {name} has not ended and trains into the same folder; wait for it (`{command} get "
                f"trainjob {name}`), end it (`{command} delete trainjob {name}`), or give another --out"
            )


def _trainjobs(namespace: str) -> list[dict[str, Any]]:
    command = ["kubectl", "--namespace", namespace, "get", KIND, "--output", "json"]
    try:
        done = subprocess.run(
            [*command, f"--request-timeout={ASK_S}s"], capture_output=True, text=True, timeout=2 * ASK_S
        )
        if not done.returncode:
            return json.loads(done.stdout)["items"]
        reason = done.stderr
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        reason = str(error) or type(error).__name__
    said = " ".join(reason.split())[:300]
    print(f"note: not known whether this training is at work already ({said})", file=sys.stderr, flush=True)
    return []


def _is_same(job: Mapping[str, Any], ours: Mapping[str, Any], request: Request) -> bool:
    """By its label; one of an earlier version, which had none, by its name and command."""
    labels, own = job["metadata"].get("labels", {}), ours["metadata"].get("labels", {})
    if PLACE in labels:
        return labels[PLACE] == own.get(PLACE)
    commands = [one.get("spec", {}).get("trainer", {}).get("command") for one in (job, ours)]
    return job["metadata"]["name"] == request.name and commands[0] == commands[1]


def _has_ended(job: Mapping[str, Any]) -> bool:
    conditions = job.get("status", {}).get("conditions", [])
    return any(one.get("type") in ENDS and one.get("status") == "True" for one in conditions)
