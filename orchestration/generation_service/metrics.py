"""What a generation service counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from orchestration.service.metrics import SECONDS, RequestMetrics

LONG = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0)
QUICK = (0.005, 0.01, 0.025, *SECONDS)


class GenerationMetrics(RequestMetrics):
    """Of jobs, besides requests."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self.route_seconds = Histogram(
            "nava_video_request_seconds",
            "Seconds from the head of a request to its answer, by path and method",
            ["path", "method"],
            registry=registry,
            buckets=QUICK,
        )
        self.jobs = Counter("nava_video_jobs", "Jobs by how they ended", ["status"], registry=registry)
        self.states = Gauge(
            "nava_video_jobs_now", "Jobs that are kept, by status", ["status"], registry=registry
        )
        self.job_seconds = Histogram(
            "nava_video_job_seconds",
            "Seconds from acceptance to the end of completed jobs",
            registry=registry,
            buckets=LONG,
        )
        self.batch_seconds = Histogram(
            "nava_video_batch_seconds", "Seconds of a batch", registry=registry, buckets=LONG
        )
        self.batch_clips = Histogram(
            "nava_video_batch_clips", "Clips of a batch", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.lost_workers = Counter(
            "nava_video_lost_workers", "Workers that died, hung or broke", registry=registry
        )
        self.expired = Counter("nava_video_expired", "Results that expired", registry=registry)
        self.kept_bytes = Gauge("nava_video_kept_bytes", "Bytes of results", registry=registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        super().answered(method, route, status, seconds)
        known = method if method in ("GET", "POST", "DELETE") else "other"
        self.route_seconds.labels(route, known).observe(seconds)
