"""A rank of torchrun whose GPU is full in the first step; it writes down each time that it got so far."""

from __future__ import annotations

import sys
from pathlib import Path

from test_out_of_memory import _full_from

from pretrain.launch.rank import begin
from pretrain.titan import run

if __name__ == "__main__":
    out = Path(sys.argv[1]).parent
    begin(out)
    with (out / "built").open("a") as file:
        file.write("x")
    _full_from(1)
    sys.exit(run.main(Path(sys.argv[1])))
