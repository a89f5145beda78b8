"""What a job may ask for, how many may wait, and how long results stay."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from orchestration.service.limits import GIB


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """Of jobs and results; `orchestration.service.limits.Limits` are those of requests. Raises ValueError
    for what is not positive."""

    queue: int = 256  # jobs that wait; further ones get 503
    token_queue: int = 64  # of one token; further ones get 429
    kept_seconds: float = 86_400.0  # results, from a job's end
    token_bytes: int = 4 * GIB  # results of one token; the oldest go first
    token_jobs: int = 1000  # ended jobs that one token can still ask for; the oldest are forgotten first
    prompt_chars: int = 8000
    seconds_of_clip: float = 60.0
    pixels_of_frame: int = 1920 * 1088
    steps: int = 200
    lost_workers: int = 2  # that a job may kill while it is alone; then it fails
    batch_seconds: float = 3600.0  # a batch may take; then its worker is taken for hung
    drain_seconds: float = 900.0  # for batches that run when the service is told to end

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(
                    f"limits.{field.name}: expected more than 0, got {getattr(self, field.name)}"
                )
