"""What the front process is told by the one that starts it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from orchestration.service.limits import ErrorStyle, Limits

CALLER_HEADER, ID_HEADER = "x-nava-caller", "x-request-id"


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """Where requests go, by which token, and who may send them."""

    backend_port: int  # of Ray Serve, on this machine's loopback
    backend_token: str  # what the web application takes, known to no caller
    default_digest: str  # SHA-256 (hex) of the service's own token, which has all scopes
    tokens: str = ""  # file of named tokens
    audit: str = ""  # file that gets a line per request
    limits: Limits = field(default_factory=Limits)
    errors: ErrorStyle = "reason"

    def to_line(self) -> bytes:
        """JSON, with a line end."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> FrontConfig:
        values = json.loads(line)
        return FrontConfig(**{**values, "limits": Limits(**values["limits"])})

    @property
    def tokens_path(self) -> Path | None:
        return Path(self.tokens) if self.tokens else None
