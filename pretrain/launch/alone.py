"""A launcher's variables in a shell: of a command that is one process, and of one rank of many."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

# what accelerate and torch.distributed take for "one of several ranks"
RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "NODE_RANK", "CROSS_RANK"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    *("MV2_COMM_WORLD_LOCAL_RANK",),
)
STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
# (rank, ranks, rank on this machine) as other launchers name them
_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)


class Rank(NamedTuple):
    """One of `ranks` processes of the same command; `local`: its number on this machine, -1 = not known."""

    rank: int
    ranks: int
    local: int = -1


def started_as_rank() -> Rank | None:
    """The rank that a launcher started this process as, by RANK and WORLD_SIZE of the environment.

    None where nothing confirms them: torchrun's own variable, or the same numbers in those of Slurm, Open MPI
    or MPICH. They are then left over in a shell, and this process is the only one.
    """
    rank, ranks = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and ranks.isdecimal()) or int(ranks) < 2:
        return None
    if STARTED_BY_TORCHRUN in os.environ:
        return Rank(int(rank), int(ranks), _number("LOCAL_RANK"))
    for own, all_of_them, local in _LAUNCHERS:
        if (os.environ.get(own), os.environ.get(all_of_them)) == (rank, ranks):
            return Rank(int(rank), int(ranks), _number(local))
    return None


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else -1


def is_rank_of_torchrun() -> bool:
    """torchrun itself started this process, as one of several ranks."""
    return STARTED_BY_TORCHRUN in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


@contextmanager
def one_process(what: str) -> Iterator[None]:
    """Without the variables of a launcher, which would have libraries wait for ranks that nobody starts.

    They are back afterwards. Raises ValueError where torchrun started this as one of several ranks.
    """
    if is_rank_of_torchrun():
        raise ValueError(
            f"{what} is one process, and torchrun started {os.environ['WORLD_SIZE']} ranks of it; start it "
            "without torchrun"
        )
    taken = {name: os.environ.pop(name) for name in RANK_VARIABLES if name in os.environ}
    if taken:
        logging.getLogger(__name__).warning(
            "%s is one process: %s of the environment are ignored", what, ", ".join(taken)
        )
    try:
        yield
    finally:
        os.environ |= taken
