"""Ray Jobs: submit a command under a run's id, and submit it again where it was interrupted.

A job's name is the id of its run; attempts after the first end in -2, -3 and so on. An attempt that is
interrupted submits the next one before it ends; that one waits for its predecessor's end, and goes away where
a person stopped it (Ray's status STOPPED): `ray job stop` sends the same SIGTERM as a machine that is taken
away, and only the status distinguishes them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestration.ray_security import check_dashboard
from orchestration.ray_token import ray_token

JOB_VARIABLE = "NAVA_JOB"  # environment variable with the submission id of the current attempt
LOCAL = "http://127.0.0.1:8265"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
MIN_GRACE_S = 30
_RUN, _ATTEMPT, _LEFT, _AFTER, _PLACE = (
    "nava.run",
    "nava.attempt",
    "nava.requeues_left",
    "nava.after",
    "nava.place",
)
_WEB = ("http://", "https://")
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Jobs(Protocol):
    """The methods of `ray.job_submission.JobSubmissionClient` in use."""

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> str: ...

    def list_jobs(self) -> Sequence[Any]: ...

    def get_job_info(self, job_id: str) -> Any: ...

    def stop_job(self, job_id: str) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A command to submit. Raises ValueError for numbers out of range."""

    run_id: str
    command: Sequence[str]
    workdir: str  # as the cluster's machines see it
    env: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)  # shown with the job
    grace_s: int = 120  # between SIGTERM and SIGKILL
    max_requeues: int = 3

    def __post_init__(self) -> None:
        if self.grace_s < MIN_GRACE_S or self.max_requeues < 0:
            raise ValueError(
                f"--grace-s must be at least {MIN_GRACE_S} and --max-requeues at least 0, got "
                f"{self.grace_s} and {self.max_requeues}"
            )

    def entrypoint(self) -> str:
        """One shell line; `exec`, so that Ray's signal reaches the command itself."""
        return f"cd -- {shlex.quote(self.workdir)} && exec {shlex.join(self.command)}"

    def variables(self) -> dict[str, str]:
        """Environment of the job; extends Ray's default of 3 s between SIGTERM and SIGKILL."""
        times = {
            "RAY_JOB_STOP_WAIT_TIME_S": str(self.grace_s),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.grace_s - 15),
        }
        return {**times, **self.env}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    by_token: it requires Ray's token, which Ray's CLI sends only if RAY_AUTH_MODE is set.
    """

    jobs: Jobs
    address: str
    by_token: bool = False

    def commands(self, job_id: str) -> dict[str, str]:
        """Shell commands for inspecting a job."""
        where, mode = (
            f" --address {shlex.quote(self.address)}",
            "RAY_AUTH_MODE=token " if self.by_token else "",
        )
        commands = {
            "list": f"list{where}",
            "logs": f"logs{where} --follow {job_id}",
            "cancel": f"stop{where} {job_id}",
        }
        return {name: f"{mode}ray job {text}" for name, text in commands.items()}


def connect(address: str = "", insecure: bool = False) -> Cluster:
    """Connect to the dashboard at this address, else RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine.

    If it requires a token, that of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token is sent.
    What RAY_ADDRESS calls `auto` or HOST:6379 is asked for its dashboard first. Raises ValueError for an
    invalid address, and unless `insecure` for one of Ray Client (`ray://`) and for a dashboard that takes
    jobs without a token; OSError if nothing responds, or a dashboard does not tell whether it asks for one.
    """
    try:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ValueError(f"Ray Jobs need Ray ({error}); pip install 'nava[serve]'") from None
    if address and not address.startswith(_WEB):
        raise ValueError(f"--address {address}: expected the dashboard's address as http://HOST:8265")
    given = address_of(address)
    try:
        # otherwise Ray prefers the environment over the argument
        with _without(_ADDRESSES):
            url = given if given.startswith(_WEB) else _dashboard_of(given, insecure)
            if not insecure:
                check_dashboard(url)
            return _connected(JobSubmissionClient, url)
    except ConnectionError as error:
        raise OSError(
            f"{given}: no Ray cluster answers ({_first_line(error)}); start one by `ray start --head`, or "
            "give its --address"
        ) from None
    except (
        RuntimeError,
        RayError,
    ) as error:  # incompatible version, or another token required
        raise OSError(f"{given}: {_first_line(error)}") from None


def _dashboard_of(address: str, insecure: bool) -> str:
    """What Ray makes of another address than a dashboard's. Raises ValueError where it cannot be checked."""
    from ray.dashboard.utils import get_address_for_submission_client

    wanted = "give the dashboard's, --address http://HOST:8265"
    if "://" in address and not insecure:  # Ray would connect to it, or import a module, to find out
        raise ValueError(f"{address}: not the address of a dashboard, so it cannot be checked; {wanted}")
    try:
        url = get_address_for_submission_client(address)
    except ValueError as error:  # its control store knows of no dashboard
        raise OSError(f"{address}: {_first_line(error)}") from None
    if not url.startswith(_WEB) and not insecure:
        raise ValueError(f"{address}: leads to {url[:100]!r}, which is no dashboard; {wanted}")
    return url


def _connected(client: Callable[..., Jobs], url: str) -> Cluster:
    from ray.exceptions import AuthenticationError

    try:
        return Cluster(client(url), url)
    except AuthenticationError:
        if not (token := ray_token()):
            raise
        return Cluster(client(url, headers={"Authorization": f"Bearer {token}"}), url, by_token=True)


def address_of(address: str) -> str:
    """The address that `connect` uses."""
    return address or next((os.environ[name] for name in _ADDRESSES if os.environ.get(name)), LOCAL)


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def check_free(jobs: Jobs, place: str) -> None:
    """Raises ValueError if a job of this `place` (a repository) is running: both would write its files."""
    for job in jobs.list_jobs():
        if (job.metadata or {}).get(_PLACE) == place and _status(job) not in ENDED:
            name = job.submission_id
            raise ValueError(
                f"{place}: job {name} is at work here ({_status(job).lower()}); wait for it, or `ray job "
                f"stop {name}`"
            )


def submit(jobs: Jobs, spec: JobSpec, place: str) -> str:
    """Submit under the run's id, or its next free attempt; returns the submission id.

    Raises OSError if Ray refuses.
    """
    attempt = _last_attempt(jobs, spec.run_id) + 1
    facts = {**spec.facts, _RUN: spec.run_id, _PLACE: place, _LEFT: str(spec.max_requeues), _AFTER: ""}
    return _submit(jobs, spec.run_id, attempt, spec.entrypoint(), spec.variables(), facts)


def requeue(jobs: Jobs, job_id: str) -> str:
    """Submit the next attempt of this job; returns its id, or "" after too many interruptions."""
    info = jobs.get_job_info(job_id)
    facts = {name: value for name, value in info.metadata.items() if name.startswith("nava.")}
    left = int(facts[_LEFT])
    if not left:
        return ""
    facts |= {_LEFT: str(left - 1), _AFTER: job_id}
    variables = dict((info.runtime_env or {}).get("env_vars", {}))
    return _submit(jobs, facts[_RUN], int(facts[_ATTEMPT]) + 1, info.entrypoint, variables, facts)


def cancelled(jobs: Jobs, job_id: str, patience_s: float = 600.0, poll_s: float = 0.5) -> bool:
    """Wait for the previous attempt to end; True if it was stopped by a person.

    Raises OSError when it has not ended after `patience_s`, which a killed machine does not delay.
    """
    before = jobs.get_job_info(job_id).metadata.get(_AFTER, "")
    end = time.monotonic() + patience_s
    while before:
        status = _status(jobs.get_job_info(before))
        if status in ENDED:
            return status == "STOPPED"
        if time.monotonic() > end:
            raise OSError(
                f"{before}: still {status.lower()} after {patience_s:.0f} s; `ray job stop {before}`, then "
                "submit again"
            )
        time.sleep(poll_s)
    return False


def _submit(
    jobs: Jobs,
    run_id: str,
    attempt: int,
    entrypoint: str,
    variables: Mapping[str, str],
    facts: Mapping[str, str],
) -> str:
    job_id = run_id if attempt == 1 else f"{run_id}-{attempt}"
    environment = {"env_vars": {**variables, JOB_VARIABLE: job_id}}
    try:
        return jobs.submit_job(
            entrypoint=entrypoint,
            submission_id=job_id,
            runtime_env=environment,
            metadata={**facts, _ATTEMPT: str(attempt)},
        )
    except RuntimeError as error:
        raise OSError(f"{job_id}: Ray did not take the job: {_first_line(error)}") from None


def _last_attempt(jobs: Jobs, run_id: str) -> int:
    found = [job.metadata or {} for job in jobs.list_jobs()]
    return max((int(facts[_ATTEMPT]) for facts in found if facts.get(_RUN) == run_id), default=0)


def _status(job: Any) -> str:
    return str(getattr(job.status, "value", job.status))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
