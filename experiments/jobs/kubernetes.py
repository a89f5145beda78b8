"""Kubernetes launcher: a TrainJob of Kubeflow Trainer v2 with the runtime `torch-distributed`.

Each submission is a TrainJob of its own: the API server completes its name (`metadata.generateName`), which
`kubectl create` takes and `kubectl apply` refuses, so that none that runs is ever changed.

The runtime gives every node its rank and the first one's address. The API is trainer.kubeflow.org/v1alpha1;
what is changed of a runtime's pods is `podTemplateOverrides` up to Trainer 2.1 and `runtimePatches` from 2.2
on (its change log).
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import yaml

from experiments.jobs.request import Request

# names used by the runtime for its job and container
API, CONTAINER = "trainer.kubeflow.org/v1alpha1", "node"
PLACE = "nava.dev/place"  # label: where a TrainJob trains into, as `place_of` abbreviates it
MANAGER = "nava.dev/launch"  # owner of our entry among a TrainJob's patches
VOLUME = "storage"
_NAME_CHARACTERS = 34  # of ours, as pods' names add to them and end at 63
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class KubernetesOptions:
    """Settings of a cluster. Raises ValueError for an invalid Kubernetes name or a missing image."""

    image: str  # with this repository installed
    namespace: str = "default"
    runtime: str = "torch-distributed"
    claim: str = ""  # PersistentVolumeClaim with latents, codecs and room for checkpoints, seen by all nodes
    mount: str = ""  # where it is mounted
    cpu: str = ""  # of a node
    memory: str = ""
    gpu_resource: str = "nvidia.com/gpu"
    secrets: tuple[str, ...] = ()  # NAME=secret:key, an environment variable from a Secret
    trainer: Literal["2.1", "2.2"] = "2.2"

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("--image: give the image that has this repository installed")
        for name in ("namespace", "runtime", "claim"):
            value = getattr(self, name)
            if value and not (_LABEL.fullmatch(value) and len(value) < 64):
                raise ValueError(
                    f"--{name} {value!r}: Kubernetes takes lower case letters, digits and dashes, and a "
                    "letter first"
                )
        if bool(self.claim) != bool(self.mount):
            raise ValueError("--claim and --mount belong together; give both or none")
        for item in self.secrets:
            if not re.fullmatch(r"[A-Za-z_]\w*=[^:=]+:[^:=]+", item):
                raise ValueError(f"--secret {item}: expected NAME=secret:key")


def render(request: Request, options: KubernetesOptions) -> str:
    """The TrainJob as YAML. Raises ValueError for variables without a value: pods have no environment of
    yours."""
    if request.passed:
        name = request.passed[0]
        raise ValueError(f"--env {name}: a pod takes it from a Secret; give --secret {name}=SECRET:KEY")
    job = {
        "apiVersion": API,
        "kind": "TrainJob",
        "metadata": {
            "generateName": f"{request.name[:_NAME_CHARACTERS].rstrip('-')}-",
            "namespace": options.namespace,
            **({"labels": {PLACE: place}} if (place := place_of(request, options)) else {}),
        },
        "spec": {
            "runtimeRef": {
                "apiGroup": API.partition("/")[0],
                "kind": "ClusterTrainingRuntime",
                "name": options.runtime,
            },
            "trainer": {
                "image": options.image,
                "numNodes": request.nodes,
                "numProcPerNode": request.gpus_per_node,
                "command": ["bash", "-c", _script(request)],
                "env": _environment(request, options),
                "resourcesPerNode": _resources(request, options),
            },
            **_pods(request, options),
        },
    }
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=1000)


def place_of(request: Request, options: KubernetesOptions) -> str:
    """A digest of the folder that is trained into, "" where each pod has one of its own."""
    out = PurePosixPath(request.workdir, request.out)
    folder = PurePosixPath(request.workdir, request.finetune.to) if request.finetune.to else out / "finetune"
    if not options.claim and not out.is_absolute():
        return ""
    place = json.dumps([options.claim, str(folder if request.tunes else out / "pretrain")])
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def _script(request: Request) -> str:
    """Shell script; `exec`, so that the pod's SIGTERM reaches `nava`."""
    lines = [f"cd -- {shlex.quote(request.workdir)}"] if request.workdir else []
    if request.nodes > 1:
        lines.append('rendezvous="$PET_MASTER_ADDR:$PET_MASTER_PORT"')
    return _escaped("\n".join([*lines, f"exec {request.command()}"]))


def _escaped(text: str) -> str:
    """Escape $: Kubernetes expands $(X) in commands and values, and reads $$ as one dollar."""
    return text.replace("$", "$$")


def _environment(request: Request, options: KubernetesOptions) -> list[dict[str, Any]]:
    plain = [{"name": name, "value": _escaped(value)} for name, value in request.variables().items()]
    parts = [re.split("[=:]", item) for item in options.secrets]
    return plain + [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, secret, key in parts
    ]


def _resources(request: Request, options: KubernetesOptions) -> dict[str, Any]:
    amounts = {"cpu": options.cpu, "memory": options.memory, options.gpu_resource: request.gpus_per_node}
    given = {name: amount for name, amount in amounts.items() if amount}
    return {"requests": given, "limits": dict(given)}


def _pods(request: Request, options: KubernetesOptions) -> dict[str, Any]:
    """Volume mounts of the nodes' pods."""
    if not options.claim:
        return {}
    spec = {
        "volumes": [{"name": VOLUME, "persistentVolumeClaim": {"claimName": options.claim}}],
        "containers": [{"name": CONTAINER, "volumeMounts": [{"name": VOLUME, "mountPath": options.mount}]}],
    }
    if options.trainer == "2.1":
        return {"podTemplateOverrides": [{"targetJobs": [{"name": CONTAINER}], "spec": spec}]}
    jobs = [{"name": CONTAINER, "template": {"spec": {"template": {"spec": spec}}}}]
    return {
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}
        ]
    }
