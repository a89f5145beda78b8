"""What the service counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orchestration.service.gate_paths import is_work

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class RequestMetrics:
    """One registry per app; labels are from fixed sets, so callers cannot make them grow."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nava_requests",
            "Answered requests by path and status",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "nava_request_seconds",
            "Seconds from the head to the answer",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.running = Gauge(
            "nava_requests_running", "Requests with work that are not answered yet", registry=self.registry
        )
        self.held = Gauge(
            "nava_held_bytes", "Bytes of uploads and of decoded clips", ["kind"], registry=self.registry
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request; the seconds only where it was work."""
        self.requests.labels(route, str(status)).inc()
        if is_work(method, route):
            self.seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class ServiceMetrics(RequestMetrics):
    """Of the reward service."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards = Counter(
            "nava_rewards", "Scores by reward and outcome", ["reward", "outcome"], registry=self.registry
        )
        self.reward_seconds = Histogram(
            "nava_reward_seconds",
            "Seconds from asking a reward to its score, the queue included",
            ["reward"],
            registry=self.registry,
            buckets=SECONDS,
        )
