"""Rewards that misbehave by the name of the clip: built by the catalog as plug-ins, run in Ray."""

import ctypes
import os
import time

from rewards.base import unscored
from rewards.types import Score


class Temper:
    """`hang` sleeps, `kill` ends its process, `raise` raises, `nan` cannot be scored; another clip is worth
    its process's id."""

    name = "temper"

    def score(self, clips):
        names = [clip.name for clip in clips]
        if "hang" in names:
            time.sleep(3600)
        if "kill" in names:
            os.kill(os.getpid(), 9)
        if "fault" in names:
            ctypes.string_at(0)
        if "raise" in names:
            raise ValueError("of\nno use")
        return [
            unscored("asked for")
            if name == "nan"
            else Score(float(os.getpid()), parts={"batch": float(len(clips))})
            for name in names
        ]


class Unloadable:
    """Whose weights are not there."""

    name = "unloadable"

    def __init__(self) -> None:
        raise FileNotFoundError("weights missing; set weights=PATH")

    def score(self, clips):
        return []
