"""A job, and how its callers see it."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

QUEUED, IN_PROGRESS = "queued", "in_progress"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
ENDED = (COMPLETED, FAILED, CANCELLED)
PREFIX = "video_"
UNKNOWN = "unknown"  # the model of jobs of earlier versions, which did not keep it


@dataclass(frozen=True, kw_only=True)
class VideoJob:
    """A row of the table of jobs; times are unix seconds, 0 = not yet."""

    number: int = 0  # in the order in which they were accepted
    id: str
    owner: str  # name of a token
    status: str = QUEUED
    wanted: str  # offer.Wanted as JSON
    kind: str  # equal for jobs that fit in one batch
    cost: float  # in proportion to the time it takes
    key: str | None = None  # Idempotency-Key
    digest: str = ""  # of the body that came with it
    created_at: float = 0.0
    started_at: float = 0.0
    completed_at: float = 0.0
    expires_at: float = 0.0
    attempt: int = 0
    suspect: int = 0  # 1: a worker was lost with it, so it is made alone
    losses: int = 0  # workers that were lost while it was alone
    error_code: str = ""
    error_message: str = ""
    video_bytes: int = 0
    audio_bytes: int = 0
    expired: str = ""  # why its results are gone: time, quota
    ends: int = 0  # how often it ended, which is once
    served: str = ""  # served_by.ServedBy as JSON; "" of jobs of earlier versions

    @staticmethod
    def of(row: sqlite3.Row) -> VideoJob:
        return VideoJob(**dict(row))


COLUMNS = tuple(field.name for field in fields(VideoJob))


def new_id() -> str:
    """Not to be guessed: 192 random bits."""
    return PREFIX + secrets.token_hex(24)


def view(
    job: VideoJob,
    fps: float,
    progress: int = 0,
    position: int | None = None,
    wait_s: float | None = None,
) -> dict[str, Any]:
    """The job object: OpenAI's fields, then ours. progress: percent of one that is being made; fps: of jobs
    that do not know their model's."""
    wanted = json.loads(job.wanted)
    served = json.loads(job.served) if job.served else {}
    fps = served.get("fps") or fps
    row: Mapping[str, Any] = wanted["row"]
    error = {"code": job.error_code, "message": job.error_message} if job.status == FAILED else None
    sound_only = row.get("task") == "T2A"
    return {
        "id": job.id,
        "object": "video",
        "model": served.get("name", UNKNOWN),
        "status": job.status,
        "progress": 100 if job.status == COMPLETED else progress if job.status == IN_PROGRESS else 0,
        "created_at": int(job.created_at),
        "started_at": _whole(job.started_at),
        "completed_at": _whole(job.completed_at),
        "expires_at": _whole(job.expires_at),
        "seconds": f"{row['num_frames'] / fps:.4g}",
        "size": "" if sound_only else f"{row['width']}x{row['height']}",
        "prompt": row["prompt"],
        "error": error,
        "remixed_from_video_id": None,
        "num_frames": row["num_frames"],
        "fps": fps,
        "seed": row["seed"],
        "data_id": row["data_id"],
        "task": row.get("task"),
        "negative_prompt": row.get("negative_prompt"),
        "steps": wanted["steps"],
        "solver": wanted["solver"],
        "guidance": wanted["guidance"],
        "fit": wanted["fit"],
        "adapters": wanted["adapters"],
        "checkpoint_id": served.get("checkpoint_id") or None,
        "adapter_ids": served.get("adapters", {}),
        "references": [name is not None for name in row.get("spk_wavs", [])],
        "first_frame": "image_path" in row,
        "video_bytes": job.video_bytes,
        "audio_bytes": job.audio_bytes,
        "warnings": wanted.get("warnings", []),
        "attempt": job.attempt,
        "queue_position": position,
        "estimated_wait_seconds": None if wait_s is None else round(wait_s, 1),
        "expired": job.expired or None,
    }


def _whole(seconds: float) -> int | None:
    return int(seconds) if seconds else None
