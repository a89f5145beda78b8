"""A generation over ranks of this machine: each takes the next batch when it is free; a dead one is replaced.

A team is one rank with a whole model, or several that hold one together (`team`). Batches are those of a
single process, so the clips are the same; of a team whose ranks share a clip, to rounding.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch

from pretrain.generate import Spread
from pretrain.generation.config import device_of
from pretrain.generation.order import ClipDone, ClipOrder, streams, voiced
from pretrain.generation.team import Seat, check_team
from pretrain.generation.worker import Assignment
from pretrain.launch.alone import RANK_VARIABLES
from pretrain.model.checkpoint import read_model_folder

MOST_DEATHS = 5  # of ranks, without a batch that was made between them


@dataclass(eq=False)
class _Rank:
    seat: Seat
    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]  # what it prints
    idle: bool = False


@dataclass(eq=False)
class _Team:
    number: int
    ranks: list[_Rank] = field(default_factory=list)
    batches: tuple[int, ...] = ()  # that it is making

    @property
    def free(self) -> bool:
        return bool(self.ranks) and all(rank.idle for rank in self.ranks)


def on_ranks(nproc: int, shard: bool = False, context: int = 1) -> Spread:
    """Spread over `nproc` processes of this machine.

    shard: they hold one model's weights together; context: that many hold a clip's tokens together. Raises
    ValueError unless `context` divides `nproc`.
    """
    if nproc < 1 or context < 1 or nproc % context:
        raise ValueError(f"--context {context} does not divide --nproc {nproc}; choose a divisor")
    if shard and nproc < 2:
        raise ValueError("--shard spreads one model over several ranks; give --nproc 2 or more")
    size = nproc if shard else context
    return Spread(partial(_run, nproc // size, size, context, shard), nproc, context)


def _run(
    teams: int, size: int, context: int, shard: bool, order: ClipOrder, begin: Callable[[], None]
) -> Iterator[ClipDone]:
    gpus = torch.cuda.device_count() if device_of(order.config).type == "cuda" else 0
    if gpus and teams * size > gpus:
        raise ValueError(f"--nproc {teams * size}: this machine has {gpus} GPUs; give at most that many")
    check_team(order, read_model_folder(order.model).args, context)
    useful = max(1, min(teams, -(-len(order.todo) * context // size)))
    crew = _Crew(order, begin, size, context, shard, [_Team(number) for number in range(useful)])
    try:
        yield from crew.work()
    finally:
        crew.end()


class _Crew:
    """The teams, what is left for them, and what they say."""

    def __init__(
        self,
        order: ClipOrder,
        begin: Callable[[], None],
        size: int,
        context: int,
        shard: bool,
        teams: Sequence[_Team],
    ) -> None:
        self.order, self.begin, self.teams = order, begin, teams
        self.size, self.context, self.shard = size, context, shard
        self.left: deque[int] = deque(order.todo)
        self.said: dict[str, ClipDone] = {}  # what a dead rank said of its batch is not said again
        self.begun, self.deaths = False, 0

    def work(self) -> Iterator[ClipDone]:
        for team in self.teams:
            self._start(team)
        while self.left or any(team.batches for team in self.teams):
            for team in self.teams:
                self._give(team)
            ranks = {rank.connection: (team, rank) for team in self.teams for rank in team.ranks}
            for ready in wait(list(ranks)):
                team, rank = ranks[ready]  # type: ignore[index]
                if rank in team.ranks:  # not of a team that was just started anew
                    yield from self._hear(team, rank)

    def end(self) -> None:
        for team in self.teams:
            _end(team)

    def _start(self, team: _Team) -> None:
        port = _free_port() if self.size > 1 else 0
        seats = [Seat(rank, self.size, self.context, self.shard, port) for rank in range(self.size)]
        team.ranks = [_started(self.order, seat, team.number * self.size + seat.rank) for seat in seats]

    def _give(self, team: _Team) -> None:
        """A batch for each lane of a free team, all of the same streams."""
        if not team.free or team.batches or not self.left:
            return
        lanes, first = self.size // self.context, self.left[0]
        like = [n for n in self.left if streams(self.order, n) == streams(self.order, first)][:lanes]
        for number in like:
            self.left.remove(number)
        heard = any(voiced(self.order.batches[number]) for number in like)
        team.batches = tuple(like)
        for rank in team.ranks:
            rank.idle = False
            _tell(rank, Assignment(tuple(like), heard))

    def _hear(self, team: _Team, rank: _Rank) -> Iterator[ClipDone]:
        try:
            kind, what = pickle.loads(rank.connection.recv_bytes())
        except (EOFError, OSError):
            self._replace(team, rank)
            return
        if kind in ("wrong", "failed"):
            raise (ValueError if kind == "wrong" else OSError)(what)
        if kind == "clip":
            if what.name not in self.said:
                self.said[what.name] = what
                yield what
            return
        rank.idle = True
        if team.free:
            if team.batches:
                self.deaths = 0
            team.batches = ()
        if kind == "ready" and not self.begun:
            self.begin()
            self.begun = True

    def _replace(self, team: _Team, rank: _Rank) -> None:
        """Start a team anew whose rank died, and give its batches back."""
        code = rank.process.wait()
        self.deaths += 1
        if code > 0 and (self.size == 1 or self.deaths >= MOST_DEATHS):
            raise RuntimeError(f"rank {rank.seat.rank} ended with code {code}:\n{_last_lines(rank.log)}")
        if self.deaths >= MOST_DEATHS:
            hint = ", by the system for want of memory, or from outside" if code == -9 else ""
            raise OSError(
                f"rank {rank.seat.rank} ended with code {code}{hint}, the {self.deaths}th without a batch "
                "made in between; lower generate.batch_size or --nproc, then run again to go on"
            )
        _end(team)
        self.left.extendleft(reversed(team.batches))
        team.batches = ()
        self._start(team)


def _started(order: ClipOrder, seat: Seat, local: int) -> _Rank:
    """A rank's process, told its order. Its GPU is the `local`-th of those that this process may use."""
    ours, theirs = socket.socketpair()
    log = TemporaryFile()  # noqa: SIM115 (closed with the rank)
    repository = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment = {**inherited, "OMP_NUM_THREADS": str(order.threads), "PYTHONPATH": path}
    if device_of(order.config).type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = devices[local]
    process = subprocess.Popen(
        [sys.executable, "-m", "pretrain.generation.worker", str(theirs.fileno()), str(os.getpid())],
        env=environment,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    theirs.close()
    rank = _Rank(seat, process, Connection(ours.detach()), log)
    _tell(rank, (order, seat))
    return rank


def _tell(rank: _Rank, what: Any) -> None:
    """Nothing where the rank is gone: that is seen when it is listened to."""
    try:
        rank.connection.send_bytes(pickle.dumps(what))
    except OSError:
        return


def _end(team: _Team) -> None:
    for rank in team.ranks:
        rank.process.kill()
    for rank in team.ranks:
        rank.process.wait()
        rank.connection.close()
        rank.log.close()
    team.ranks = []


def _last_lines(log: IO[bytes], count: int = 40) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
