import json
import os
import subprocess
import sys
import uuid

import pytest
from jobs_world import RECIPE, STAGE, STEPS, TOKEN, Parts, cluster, rows, wait_until, write_pipeline

pytest.importorskip("ray")
from orchestration.launch import connect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address():
    """Ray's own way: whoever has the token in the environment, but not RAY_AUTH_MODE, is refused by Ray's own
    commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN, uuid.uuid4().hex)
        patch.delenv("RAY_AUTH_MODE", raising=False)
        with cluster(os.environ[TOKEN]) as where:
            yield where


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The model of a training that nobody interrupted."""
    root = tmp_path_factory.mktemp("whole") / "w"
    environment = write_pipeline(root)
    subprocess.run(
        [sys.executable, "-m", "experiments.stages", STAGE],
        cwd=root,
        env=environment,
        check=True,
        capture_output=True,
    )
    return model(root)


def model(root):
    return (root / "out" / "pretrain" / "stage1" / "model" / "model.safetensors").read_bytes()


def submit(root, environment, address):
    command = [
        sys.executable,
        "-m",
        "experiments.cli",
        "submit",
        RECIPE,
        "--stage",
        STAGE,
        "--address",
        address,
    ]
    command += ["--env", f"PYTHONPATH={environment['PYTHONPATH']}", "--env", "OMP_NUM_THREADS=1"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def ended(jobs, job):
    wait_until(lambda: job in {found.submission_id for found in jobs.list_jobs()}, 200)
    wait_until(lambda: jobs.get_job_info(job).status in ("SUCCEEDED", "FAILED", "STOPPED"), 300)
    info = jobs.get_job_info(job)
    return str(info.status.value), info.driver_exit_code


def mlflow_run(root, run_id):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    run = client.get_run(run_id)
    return run, [metric.step for metric in client.get_metric_history(run_id, "grad_norm")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", ["attendant", "dvc", "stage", "torchrun", "rank"])
def test_sigterm_to_any_part_leaves_a_checkpoint_and_the_job_goes_on(address, whole, tmp_path, part):
    root = tmp_path / "w"
    environment = write_pipeline(root)
    said, jobs = submit(root, environment, address), connect(address).jobs
    job = said["job"]
    assert (
        said["logs"].endswith(f"--follow {job}")
        and said["cancel"] == f"RAY_AUTH_MODE=token ray job stop --address {address} {job}"
    )
    wait_until(lambda: rows(root) > 2, 200)
    Parts(root).terminate(part)
    assert ended(jobs, job) == ("FAILED", 130)
    assert rows(root) < STEPS
    assert ended(jobs, f"{job}-2") == ("SUCCEEDED", 0)
    assert model(root) == whole
    assert f"{job}-3" not in {found.submission_id for found in jobs.list_jobs()}
    wait_until(lambda: mlflow_run(root, job)[0].info.status == "FINISHED", 30)
    run, steps = mlflow_run(root, job)
    assert run.data.tags["nava.job"] == f"{job}-2" and run.data.params["global_batch_size"] == "4"
    assert run.data.tags["nava.changed.nava.job"] == f"{job} -> {job}-2"
    assert sorted(set(steps)) == steps == list(range(1, STEPS + 1))


@pytest.mark.timeout(900)
def test_a_stopped_job_is_not_submitted_again_and_a_new_submission_goes_on_with_its_run(
    address, whole, tmp_path
):
    root = tmp_path / "w"
    environment = write_pipeline(root)
    said, jobs = submit(root, environment, address), connect(address).jobs
    job = said["job"]
    twice = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "submit", RECIPE, "--stage", STAGE, "--address", address],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert twice.returncode == 2 and f"job {job} is at work here (" in twice.stderr
    wait_until(lambda: rows(root) > 2, 200)
    subprocess.run(said["cancel"], shell=True, check=True, capture_output=True)
    assert ended(jobs, job)[0] == "STOPPED"
    assert ended(jobs, f"{job}-2")[0] == "STOPPED"
    state = json.loads((root / "out" / "pretrain" / "stage1" / "state.json").read_text())
    assert state["status"] == "interrupted" and 2 < state["step"] < STEPS
    assert Parts(root).found() == {}
    assert submit(root, environment, address)["job"] == f"{job}-3"
    assert ended(jobs, f"{job}-3") == ("SUCCEEDED", 0)
    assert model(root) == whole
