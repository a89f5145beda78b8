"""What `nava launch` renders is parsed as its readers parse it, and run: a script with two ranks, a Slurm job
that is preempted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from launch_world import free_port, preempted, requeued, write_world

from experiments.cli import main
from experiments.jobs import kubernetes, node, slurm
from experiments.jobs.kubernetes import KubernetesOptions
from experiments.jobs.request import RENDEZVOUS_PORT, Finetuning, Request
from experiments.jobs.slurm import SlurmOptions
from pretrain.launch.nodes import Nodes, find_node_rank

HOSTILE = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)
IMAGE = KubernetesOptions(image="registry/nava:1")


def of_script(text: str, rendezvous: str = "") -> list[str]:
    """What a shell would run as `nava`: the script with `exec` printing its arguments."""
    started = re.compile("nava (pretrain|finetune) ")
    line, at = next((line, at) for line in text.split("\n") if (at := started.search(line)))
    line = line[at.start() :].removesuffix(" &")
    program = f'rendezvous={shlex.quote(rendezvous)}\nshow() {{ printf "%s\\0" "$@"; }}\nshow {line}'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def of_job(text: str) -> tuple[dict, list[str]]:
    job = yaml.safe_load(text)
    return job, of_script(expanded(job["spec"]["trainer"]["command"][2]))


def expanded(text: str) -> str:
    """What Kubernetes makes of a command or value: $$ is a dollar, $(NAME) a variable, and any other dollar
    itself."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else "A VARIABLE", text)


@settings(max_examples=25, deadline=None)
@given(recipe=HOSTILE, setting=HOSTILE, out=HOSTILE, value=HOSTILE)
@example(recipe="a", setting="x=$$", out="$(OUT)", value="a$$(b)$$$")
def test_any_name_survives_every_shell_and_all_launchers_run_the_same(
    recipe: str, setting: str, out: str, value: str
) -> None:
    request = Request(
        recipe=recipe, settings=(setting,), out=out, env=(f"X={value}",), workdir=out, init_from=value
    )
    script, batch = node.render(request), slurm.render(request, SlurmOptions())
    job, command = of_job(kubernetes.render(request, IMAGE))
    assert of_script(script) == of_script(batch) == command == request.arguments()
    assert command[2] == recipe and f"--set={setting}" in command and f"--out={out}" in command
    for text in (script, batch):
        assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0
    assert [expanded(item["value"]) for item in job["spec"]["trainer"]["env"] if item["name"] == "X"] == [
        value
    ]
    exported = next(line for line in script.split("\n") if line.startswith("export X="))
    shown = subprocess.run(
        ["bash", "-c", f'{exported}\nprintf %s "$X"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == value


def test_several_nodes_meet_and_the_rest_of_the_line_is_the_same() -> None:
    request = Request(recipe="nava_6b", nodes=16)
    batch = slurm.render(request, SlurmOptions())
    _, command = of_job(kubernetes.render(request, IMAGE))
    assert of_script(batch) == [*request.arguments(), "--rdzv="] == command
    assert '"$PET_MASTER_ADDR:$PET_MASTER_PORT"' in expanded(kubernetes.render(request, IMAGE))
    with pytest.raises(ValueError, match="a script starts one machine"):
        node.render(request)


def test_sbatch_asks_for_nodes_a_warning_and_a_requeue() -> None:
    request = Request(recipe="nava_6b", nodes=16, gpus_per_node=8, grace_s=180)
    batch = slurm.render(
        request,
        SlurmOptions(partition="big", account="team", time="2-00:00:00", image="im age", mounts="/a:/a"),
    )
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", batch, re.M))
    assert (
        asked["nodes"] == "16"
        and asked["ntasks-per-node"] == "1"
        and asked["gpus-per-node"] == "8"
        and "requeue" in asked
    )
    assert (
        asked["signal"] == "B:TERM@180" and asked["open-mode"] == "append" and asked["job-name"] == "nava-6b"
    )
    assert (asked["partition"], asked["account"], asked["time"]) == (
        "big",
        "team",
        "2-00:00:00",
    ) and "array" not in asked
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=165" in batch and "'--container-image=im age'" in batch
    assert batch.splitlines()[1].startswith("#SBATCH")  # directives after a command are ignored by sbatch
    # the site's default, of job and step
    assert "cpus-per-task" not in batch
    batch = slurm.render(request, SlurmOptions(cpus_per_task=48, image="i"))
    # since Slurm 22.05 srun does not take it from the job
    assert "\n#SBATCH --cpus-per-task=48\n" in batch
    assert "\nsrun --kill-on-bad-exit=1 --cpus-per-task=48 --container-image=i nava pretrain" in batch


@pytest.mark.parametrize("trainer", ["2.1", "2.2"])
def test_trainjob_has_what_kubeflow_needs(trainer) -> None:
    options = KubernetesOptions(
        image="i",
        claim="data",
        mount="/data",
        cpu="96",
        memory="1Ti",
        secrets=("KEY=s3:key",),
        trainer=trainer,
    )
    job, _ = of_job(kubernetes.render(Request(recipe="my.Recipe_1", nodes=2, gpus_per_node=4), options))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["metadata"]["generateName"] == "my-recipe-1-"
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed"
    trained = job["spec"]["trainer"]
    assert (trained["numNodes"], trained["numProcPerNode"], trained["image"]) == (2, 4, "i")
    assert trained["resourcesPerNode"]["limits"] == {"cpu": "96", "memory": "1Ti", "nvidia.com/gpu": 4}
    assert {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "key"}}} in trained["env"]
    if trainer == "2.1":
        pod = job["spec"]["podTemplateOverrides"][0]["spec"]
    else:
        patch = job["spec"]["runtimePatches"][0]
        pod = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
            "template"
        ]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "data"
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/data"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request(recipe="a", nodes=0), "at least 1"),
        (lambda: Request(recipe="a\nb"), "control characters"),
        (lambda: Request(recipe="a", env=("1X=2",)), "NAME=value"),
        (lambda: Request(recipe="a", env=("A\nB",)), "control characters"),
        (lambda: Request(recipe="a", grace_s=5), "grace"),
        (lambda: Request(recipe="a", finetune=Finetuning(clips="a\nb")), "control characters"),
        (lambda: Request(recipe="a", finetune=Finetuning(clips="c"), stage="stage1"), "finetune.model"),
        (lambda: Request(recipe="a", finetune=Finetuning(clips="c"), init_from="m"), "finetune.model"),
        (lambda: Finetuning(model="m"), "--finetune.model: a fine-tuning needs clips"),
        (lambda: Finetuning(clips="c", lora=True, full=True), "exclude each other"),
        (lambda: SlurmOptions(partition="x\n#SBATCH --array=1"), "--partition"),
        (lambda: KubernetesOptions(image=""), "--image"),
        (lambda: KubernetesOptions(image="i", claim="c"), "belong together"),
        (lambda: KubernetesOptions(image="i", namespace="Up"), "lower case"),
        (lambda: KubernetesOptions(image="i", secrets=("x",)), "NAME=secret:key"),
        (lambda: Nodes(count=2), "HOST:PORT"),
        (lambda: Nodes(count=2, rank=2, rendezvous="a:1"), "node 2 of 2"),
        (lambda: find_node_rank(2, -1, {}), "which of the 2 nodes"),
    ],
)
def test_what_cannot_be_launched_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_nodes_know_their_number_and_each_stage_has_a_port() -> None:
    assert (
        find_node_rank(4, -1, {"SLURM_NODEID": "3"}) == 3
        and find_node_rank(4, -1, {"PET_NODE_RANK": "2"}) == 2
        and find_node_rank(4, 1, {}) == 1
    )
    third = Nodes(count=4, rank=1, rendezvous="[::1]:29500", max_restarts=2).at(2)
    assert third.rendezvous == "[::1]:29502" and not third.leads
    told = third.arguments(8, 0)
    assert {"--nnodes=4", "--nproc-per-node=8", "--max-restarts=2", "--rdzv-backend=c10d"} <= set(told)
    first = Nodes(count=2, rendezvous="a:1").arguments(1, 0)
    assert any("is_host=0" in each for each in told) and any("is_host=1" in each for each in first)
    assert Nodes().arguments(2, 0) == ["--standalone", "--nproc-per-node=2", "--max-restarts=0"]


def test_dry_run_prints_and_a_missing_scheduler_is_one_line(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["nava_6b", "--nodes", "16", "--gpus-per-node", "8"]
    for verb, more in (("slurm", []), ("kubernetes", ["--image", "i"])):
        assert main(["launch", verb, *asked, *more, "--dry-run"]) == 0
        told = capsys.readouterr()
        assert "nava pretrain nava_6b" in told.out and not list(tmp_path.iterdir())
        assert ("note: --cpus-per-task is not set" in told.err) == (verb == "slurm")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(SystemExit) as ended:
            main(["launch", verb, *asked, *more])
        assert (
            ended.value.code == 2
            and "no such command here" in capsys.readouterr().err
            and not list(tmp_path.iterdir())
        )
    assert main(["launch", "slurm", *asked, "--cpus-per-task", "48", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert told.out.count("--cpus-per-task=48") == 2 and not told.err
    with pytest.raises(SystemExit):
        main(["launch", "slurm", "nava_6b", "--nodes", "3", "--dry-run"])
    assert "does not split over" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_the_script_of_one_node_trains(tmp_path: Path) -> None:
    environment = write_world(tmp_path)
    request = Request(
        recipe="launch_world.launched",
        gpus_per_node=2,
        settings=("pretrain.stages.stage1.steps=6",),
        workdir=str(tmp_path),
    )
    script = tmp_path / "run.sh"
    script.write_text(node.render(request))
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert state(tmp_path) == ("finished", 6)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_preempted_slurm_job_checkpoints_requeues_and_goes_on(tmp_path: Path) -> None:
    """Two nodes of one rank each, found by a real rendezvous."""
    environment = write_world(tmp_path) | {"SLURM_NNODES": "2"}
    first = Request(
        recipe="launch_world.launched",
        nodes=2,
        gpus_per_node=1,
        settings=("pretrain.stages.stage1.steps=100",),
    )
    batch = tmp_path / "job.sbatch"
    batch.write_text(slurm.render(first, SlurmOptions()).replace(f":{RENDEZVOUS_PORT}", f":{free_port()}"))
    metrics = tmp_path / "out" / "pretrain" / "stage1" / "metrics.jsonl"
    assert preempted(batch, metrics, environment, 150) == 130, logs(tmp_path)
    status, step = state(tmp_path)
    assert status == "interrupted" and 0 < step < 100
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("srun --kill-on-bad-exit=1 nava pretrain") and calls[1:] == [
        "scontrol requeue 7"
    ]
    assert requeued(batch, environment) == 0, logs(tmp_path)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert state(tmp_path) == ("finished", 100) and sorted(set(steps)) == list(range(1, 101))
    assert (tmp_path / "calls").read_text().count("requeue") == 1


def state(folder: Path) -> tuple[str, int]:
    found = json.loads((folder / "out" / "pretrain" / "stage1" / "state.json").read_text())
    return found["status"], found["step"]


def logs(folder: Path) -> str:
    return "\n".join(
        path.read_text()[-1500:]
        for path in (*folder.glob("calls.*"), *folder.glob("out/pretrain/stage1/log*.txt"))
    )
