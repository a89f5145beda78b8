"""Where a training's ranks run: one machine, or several that meet at the first one's address."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

# of Slurm, of Kubeflow Trainer (torchrun's own environment), of other launchers
NODE_RANK_VARIABLES = ("SLURM_NODEID", "PET_NODE_RANK", "NODE_RANK")
# nodes start at different times, and between stages the first one exports and makes samples
JOIN_TIMEOUT_S = 7200


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """`count` machines of which this is number `rank`; they meet at `rendezvous` (HOST:PORT of number 0).

    Raises ValueError where there are several and they could not find each other.
    """

    count: int = 1
    rank: int = 0
    rendezvous: str = ""
    # times torchrun starts the ranks again after one has died; they go on from the newest checkpoint
    max_restarts: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.max_restarts < 0:
            raise ValueError(
                f"--nnodes must be at least 1 and --max-restarts at least 0, got {self.count} and "
                f"{self.max_restarts}"
            )
        if not 0 <= self.rank < self.count:
            raise ValueError(f"this machine is node {self.rank} of {self.count}; nodes count from 0")
        if self.count > 1:
            endpoint(self.rendezvous)

    @property
    def leads(self) -> bool:
        """The node that checks, records and prints; the others only bring ranks."""
        return self.rank == 0

    def at(self, stage: int) -> Nodes:
        """The same nodes with the rendezvous of stage number `stage`: each stage has its own port."""
        if self.count == 1:
            return self
        host, port = endpoint(self.rendezvous)
        return Nodes(
            count=self.count,
            rank=self.rank,
            rendezvous=f"{host}:{port + stage}",
            max_restarts=self.max_restarts,
        )

    def arguments(self, nproc: int, port: int) -> list[str]:
        """torchrun's options. port: of a single machine, 0 = any free one."""
        ranks = [f"--nproc-per-node={nproc}", f"--max-restarts={self.max_restarts}"]
        if self.count == 1:
            meeting = (
                ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=nava"]
                if port
                else ["--standalone"]
            )
            return [*meeting, *ranks]
        patience = f"join_timeout={JOIN_TIMEOUT_S},read_timeout={JOIN_TIMEOUT_S},is_host={int(self.leads)}"
        where = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.rendezvous}",
            "--rdzv-id=nava",
            f"--rdzv-conf={patience}",
        ]
        return [f"--nnodes={self.count}", *where, *ranks]


def endpoint(text: str) -> tuple[str, int]:
    """HOST:PORT in two parts. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_000:
        raise ValueError(f"--rdzv: expected HOST:PORT of the first node, got {text!r}")
    return host, int(port)


def find_node_rank(count: int, number: int, environment: Mapping[str, str] = os.environ) -> int:
    """This machine's rank: given, or from the launcher's environment. Raises ValueError without either."""
    if number >= 0 or count == 1:
        return max(number, 0)
    for name in NODE_RANK_VARIABLES:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    raise ValueError(
        f"--node-rank: which of the {count} nodes is this? give 0 to {count - 1}, or one of "
        f"{', '.join(NODE_RANK_VARIABLES)}"
    )
