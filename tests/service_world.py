"""A reward service in this process: no Ray, real decoding, rewards that misbehave on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

from starlette.testclient import TestClient

from orchestration.service.app import build_app
from orchestration.service.gate import digest_of
from orchestration.service.limits import Limits
from orchestration.service.schema import ServedReward
from orchestration.service.scoring import RewardFailed
from rewards.catalog import open_rewards
from rewards.types import Clip, Score

TOKEN = "a-token-of-the-tests-0123456789"
SMALL = Limits(
    body_bytes=2 << 20,
    json_bytes=50_000,
    body_seconds=1.0,
    decoded_bytes=32 << 20,
    held_bytes=64 << 20,
    decoders=1,
    decode_seconds=5.0,
)


class LocalScoring:
    """Rewards of the catalog by their names, `broken`, which fails, and `lost`, which does so `num_lost`
    times."""

    def __init__(self, *names: str) -> None:
        with open_rewards(names, {}) as rewards:
            self.rewards = dict(zip(names, rewards, strict=True))
        self.served: Mapping[str, ServedReward] = {
            name: ServedReward(name=name) for name in (*names, "broken", "lost")
        } | {
            "judge": ServedReward(name="judge", judge=True),
            "errors": ServedReward(name="errors", lower_is_better=True),
        }
        self.clips: list[Clip] = []
        self.wrong, self.num_lost = "", 0

    async def share(self, clip: Clip) -> Clip:
        return clip

    async def score(self, reward: str, clip: Clip) -> Score:
        self.clips.append(clip)
        if reward == "broken":
            raise RewardFailed("its process\ndied")
        if reward == "lost" and self.num_lost > 0:
            self.num_lost -= 1
            raise RewardFailed("its replica was lost (ActorDiedError); try again", again=True)
        if reward not in self.rewards:
            return Score(0.25, parts={"inf": float("inf")}, text="h\ud800i")
        return (await asyncio.to_thread(self.rewards[reward].score, [clip]))[0]

    async def health(self) -> str:
        return self.wrong


@contextmanager
def service(root: Path, *names: str, limits: Limits = SMALL):
    """(client with the right token, scoring)."""
    scoring = LocalScoring(*names)
    app = build_app(scoring, [root.resolve()], limits, digest_of(TOKEN))
    with TestClient(
        app, headers={"authorization": f"Bearer {TOKEN}"}, raise_server_exceptions=False
    ) as client:
        yield client, scoring
