"""Commands that are one process, started in a shell that has a launcher's variables."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# what accelerate and torch.distributed take for "one of several ranks"
RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "NODE_RANK", "CROSS_RANK"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    *("MV2_COMM_WORLD_LOCAL_RANK",),
)
STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"


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
