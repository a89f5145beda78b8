"""Single-node launcher: a shell script that runs the training and resumes it when started again."""

from __future__ import annotations

from experiments.jobs.request import Request


def render(request: Request) -> str:
    """Render the script. Raises ValueError for several nodes."""
    if request.nodes != 1:
        raise ValueError(
            f"--nodes {request.nodes}: a script starts one machine; take `nava launch slurm` or `nava "
            "launch kubernetes`"
        )
    return f"""#!/usr/bin/env bash
# {request.name} on one machine. SIGTERM: the ranks finish their step and write a checkpoint.
set -euo pipefail
{request.preamble()}
exec {request.command()}
"""
