"""A rank of a generation: `python -m pretrain.generation.worker FD` makes the batches that it is told to.

It talks to the command that started it over a socket, in pickles of its own parent, and ends with it.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from pretrain.config import one_line
from pretrain.generation.order import ClipOrder
from pretrain.generation.team import Seat, seated


@dataclass(frozen=True)
class Assignment:
    """A batch for each lane of a team; a lane without one makes the last one again, for the others' sake.

    voiced: some clip of them has a reference voice, so that all ranks make equally many forwards.
    """

    batches: tuple[int, ...]
    voiced: bool

    def of_lane(self, lane: int) -> tuple[int, bool]:
        """The batch of a lane, and whether it is to be written."""
        return self.batches[min(lane, len(self.batches) - 1)], lane < len(self.batches)


def serve(order: ClipOrder, seat: Seat, connection: Connection) -> None:
    """Say "ready", then for every task received what became of each clip, and "idle"."""
    torch.set_num_threads(order.threads)
    maker = order.load(seated(seat, order) if seat.size > 1 else None)
    _say(connection, "ready")
    while (task := pickle.loads(connection.recv_bytes())) is not None:
        number, mine = task.of_lane(seat.lane)
        latents = (
            order.latents(number, maker, task.voiced)
            if seat.alone
            else maker.latents(order.batches[number], task.voiced)
        )
        if mine and seat.writes:
            order.keep(number, latents)
            for clip in order.write(number, latents, maker):
                _say(connection, "clip", clip)
        _say(connection, "idle")


def _say(connection: Connection, kind: str, what: object = None) -> None:
    connection.send_bytes(pickle.dumps((kind, what)))


def main(number: int, parent: int) -> int:
    """Exit code 0, or 2 after an error of one line was said."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # killed while this process imported
        return 3
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command answers Ctrl-C, and ends its ranks
    connection = Connection(number)
    try:
        order, seat = pickle.loads(connection.recv_bytes())
        serve(order, seat, connection)
    except EOFError:
        return 3
    except (ValueError, OSError) as error:
        kind = "wrong" if isinstance(error, ValueError) else "failed"
        _say(connection, kind, one_line(error, 2000))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
