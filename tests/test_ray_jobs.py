import os
import subprocess
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.commands.submit import variables
from experiments.jobs import submit as submission
from experiments.jobs.submit import Submission, check, mlflow_id, submit_stage
from experiments.layout import Layout
from experiments.runs import run as runs
from experiments.runs.run import Interrupted, tracked
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import RunStart, SpoolTracker, new_run_key
from orchestration import launch
from orchestration.launch import Cluster, JobSpec, cancelled, check_free, connect, requeue


@dataclass
class FakeJobs:
    """Ray's job server as a dictionary; the newest job runs."""

    jobs: dict = field(default_factory=dict)
    stopped: list = field(default_factory=list)

    def submit_job(self, *, entrypoint, submission_id, runtime_env, metadata):
        if submission_id in self.jobs:
            raise RuntimeError(
                f"Request failed with status code 500: Job with submission_id {submission_id} already "
                "exists.\nTraceback"
            )
        self.jobs[submission_id] = SimpleNamespace(
            submission_id=submission_id,
            entrypoint=entrypoint,
            runtime_env=runtime_env,
            metadata=metadata,
            status="RUNNING",
        )
        return submission_id

    def list_jobs(self):
        stranger = SimpleNamespace(submission_id=None, metadata=None, status="RUNNING")
        return [*self.jobs.values(), stranger]

    def get_job_info(self, job_id):
        return self.jobs[job_id]

    def stop_job(self, job_id):
        self.stopped.append(job_id)
        return True


def spec(**changes):
    given = {
        "run_id": "abc",
        "command": ["python", "-m", "x", "it's"],
        "workdir": "/a b",
        "env": {"K": "v"},
        **changes,
    }
    return JobSpec(**given)


def test_a_job_is_named_by_its_run_and_has_time_for_a_checkpoint():
    jobs = FakeJobs()
    assert launch.submit(jobs, spec(grace_s=60), "/a b") == "abc"
    job = jobs.jobs["abc"]
    assert subprocess.run(["sh", "-nc", job.entrypoint]).returncode == 0
    assert job.entrypoint == "cd -- '/a b' && exec python -m x 'it'\"'\"'s'"
    expected = {
        "K": "v",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "45",
        "NAVA_JOB": "abc",
    }
    assert job.runtime_env == {"env_vars": expected}


@given(st.integers(0, 5))
def test_an_interrupted_job_is_submitted_again_as_often_as_allowed_and_no_more(max_requeues):
    jobs = FakeJobs()
    last = launch.submit(jobs, spec(max_requeues=max_requeues), "/place")
    names = [last]
    while last := requeue(jobs, last):
        names.append(last)
    assert names == ["abc", *(f"abc-{number}" for number in range(2, max_requeues + 2))]
    entries = [
        (
            job.entrypoint,
            job.runtime_env["env_vars"].pop("NAVA_JOB"),
            tuple(job.runtime_env["env_vars"].items()),
        )
        for job in jobs.jobs.values()
    ]
    assert [entry[1] for entry in entries] == names and len({(entry[0], entry[2]) for entry in entries}) == 1


def test_a_later_submission_of_the_same_run_counts_on_with_requeues_of_its_own():
    jobs = FakeJobs()
    requeue(jobs, launch.submit(jobs, spec(max_requeues=1), "/place"))
    assert launch.submit(jobs, spec(max_requeues=1), "/place") == "abc-3"
    assert not cancelled(jobs, "abc-3")
    assert requeue(jobs, "abc-3") == "abc-4" and requeue(jobs, "abc-4") == ""


@pytest.mark.parametrize(("status", "stopped"), [("STOPPED", True), ("FAILED", False), ("SUCCEEDED", False)])
def test_an_attempt_goes_away_where_the_one_before_was_stopped_by_a_person(status, stopped):
    jobs = FakeJobs()
    job = launch.submit(jobs, spec(), "/place")
    after = requeue(jobs, job)
    threading.Timer(0.05, lambda: setattr(jobs.jobs[job], "status", status)).start()
    assert cancelled(jobs, after, poll_s=0.01) is stopped
    assert not cancelled(jobs, job)


def test_an_attempt_does_not_wait_forever_for_the_one_before():
    jobs = FakeJobs()
    after = requeue(jobs, launch.submit(jobs, spec(), "/place"))
    with pytest.raises(OSError, match="abc: still running after 0 s"):
        cancelled(jobs, after, patience_s=0.05, poll_s=0.01)


def test_two_jobs_do_not_work_in_one_place():
    jobs = FakeJobs()
    job = launch.submit(jobs, spec(), "/place")
    check_free(jobs, "/other")
    with pytest.raises(
        ValueError, match=r"/place: job abc is at work here .running.; wait for it, or `ray job stop abc`"
    ):
        check_free(jobs, "/place")
    jobs.jobs[job].status = "FAILED"
    check_free(jobs, "/place")


def test_what_ray_refuses_is_one_line():
    jobs = FakeJobs()
    jobs.submit_job(entrypoint="", submission_id="abc", runtime_env={}, metadata={})
    with pytest.raises(OSError, match=r"^abc: Ray did not take the job: .*already exists\.$"):
        launch.submit(jobs, spec(), "/place")


@pytest.mark.parametrize("changes", [{"grace_s": 29}, {"max_requeues": -1}])
def test_numbers_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match="--grace-s must be at least 30 and --max-requeues at least 0"):
        spec(**changes)


def test_commands_are_rays_own():
    cluster = Cluster(FakeJobs(), "http://h:8265")
    assert cluster.commands("abc") == {
        "list": "ray job list --address http://h:8265",
        "logs": "ray job logs --address http://h:8265 --follow abc",
        "cancel": "ray job stop --address http://h:8265 abc",
    }
    locked = Cluster(FakeJobs(), "http://h:8265", by_token=True)
    assert locked.commands("abc")["list"] == "RAY_AUTH_MODE=token ray job list --address http://h:8265"


def test_a_wrong_address_is_one_line(monkeypatch):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="--address here:6379: expected the dashboard's address"):
        connect("here:6379")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(
        OSError, match=r"http://127.0.0.1:1: no Ray cluster answers \(.+\); start one by `ray start --head`"
    ):
        connect("http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"http://127.0.0.1:2: no Ray"):
        connect()
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:2"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A repository with one training stage, and an MLflow that answers at once."""
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  align:\n    cmd: x\n    outs: [out/align]\n  mine:\n    cmd: x\n"
    )
    (tmp_path / "params.yaml").write_text("recipe: mini\n")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(runs, "ensure_sender", lambda spool, root: None)

    def answer(key, spool, root):
        return f"id-of-{key}"

    monkeypatch.setattr(submission, "mlflow_id", answer)
    monkeypatch.setattr(submission, "config_of", lambda stage, recipe: {"n": recipe.number})
    return tmp_path


def asked(root, number=1, **changes):
    recipe = SimpleNamespace(name="mini", number=number)
    return Submission(
        **{
            "recipe": recipe,
            "stage": "align",
            "workdir": "/repo",
            "python": "python",
            "root": root,
            **changes,
        }
    )


def train(root, number=1, fail=None):
    """The stage as the job runs it; its run's key."""
    layout = Layout(out=root / "out")
    with tracked("align", "mini", {"n": number}, layout, root, resume=True) as tracker:
        layout.align.mkdir(parents=True, exist_ok=True)
        if fail:
            raise fail
    return tracker.key


def in_job(monkeypatch, jobs, job):
    for name in ("NAVA_RUN", "NAVA_JOB"):
        monkeypatch.setenv(name, jobs.jobs[job].runtime_env["env_vars"][name])


def test_the_stage_takes_the_run_that_was_announced_and_keeps_it_over_attempts(world, monkeypatch):
    jobs = FakeJobs()
    job = submit_stage(asked(world), jobs)
    in_job(monkeypatch, jobs, job)
    with pytest.raises(Interrupted):
        train(world, fail=Interrupted("stop"))
    in_job(monkeypatch, jobs, requeue(jobs, job))
    key = train(world)
    assert job == f"id-of-{key}"
    events = [event for _, event in SpooledRun(world / "out" / "tracking" / key).events()]
    assert [event["kind"] for event in events if event["kind"] != "artifact"] == [  # of the settings
        "announce",
        "start",
        "finish",
        "start",
        "metrics",
        "finish",
    ]
    assert events[1]["tags"]["nava.job"] == job and events[1]["config"] == {"n": 1}


def test_an_announced_run_is_not_taken_by_another_stage_nor_by_other_settings(world, monkeypatch):
    jobs = FakeJobs()
    job = submit_stage(asked(world), jobs)
    in_job(monkeypatch, jobs, job)
    layout = Layout(out=world / "out")
    with tracked("generate", "mini", {}, layout, world, resume=False) as tracker:
        layout.generated.mkdir(parents=True)
    assert f"id-of-{tracker.key}" != job
    with pytest.raises(OSError):
        train(world, fail=OSError("disk full"))
    assert f"id-of-{train(world, number=2)}" != job


def test_a_submission_goes_on_with_an_interrupted_run(world):
    with pytest.raises(KeyboardInterrupt):
        train(world, fail=KeyboardInterrupt())
    key = runs.running_key("align", Layout(out=world / "out"))
    assert submit_stage(asked(world), FakeJobs()) == f"id-of-{key}"
    assert submit_stage(asked(world, number=2), FakeJobs()) != f"id-of-{key}"


def test_a_run_that_could_not_be_submitted_is_ended(world, monkeypatch):
    def refuse(key, spool, root):
        raise OSError("MLflow is out")

    monkeypatch.setattr(submission, "mlflow_id", refuse)
    with pytest.raises(OSError, match="MLflow is out"):
        submit_stage(asked(world), FakeJobs())
    found = [SpooledRun(path) for path in (world / "out" / "tracking").iterdir()]
    assert [run.last_end()[0] for run in found] == ["FAILED"]


@pytest.mark.parametrize(
    ("changes", "chosen", "says"),
    [
        ({"stage": "algin"}, "mini", "--stage: unknown stage 'algin'; did you mean 'align'"),
        ({"stage": "mine"}, "mini", "--stage: unknown stage 'mine'"),
        ({}, "nava_6b", "params.yaml: names recipe 'nava_6b', which is what a job runs; write 'mini' there"),
    ],
)
def test_what_would_fail_on_the_cluster_is_refused_before(world, changes, chosen, says):
    with pytest.raises(ValueError, match=says):
        check(asked(world, **changes), chosen)


def test_a_password_does_not_travel_with_the_job(world, monkeypatch):
    check(asked(world), "mini")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    with pytest.raises(ValueError, match="holds a password") as raised:
        check(asked(world), "mini")
    assert "secret" not in str(raised.value)


def test_without_an_answer_of_mlflow_waiting_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "ensure_sender", lambda spool, root: None)
    tracker = SpoolTracker(tmp_path / new_run_key("align"))
    tracker.announce(RunStart(name="align"))
    with pytest.raises(OSError, match="gave the run no id in 0 s"):
        mlflow_id(tracker.key, tmp_path, tmp_path, patience_s=0.0)


@pytest.mark.parametrize("item", ["A", "=b", "a-b=c"])
def test_environment_is_name_and_value(item):
    assert variables(("A=b=c", "D=")) == {"A": "b=c", "D": ""}
    with pytest.raises(ValueError, match="expected NAME=VALUE"):
        variables((item,))
