"""Reads hostile files one by one in this process, under a limit of memory: `python hostile_run.py FOLDER
FIRST COUNT` takes those of these seeds and prints what went wrong as JSON.

A file may be taken or refused; a refusal is a ValueError or an OSError of one line. Anything else is a
finding.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_files import Templates, write

Read = Callable[[Path], Any]
MORE_MEMORY = 3 * 2**30  # bytes of address space beyond what the imports take
MAX_SECONDS = 60.0  # of one file, on a busy machine


def readers() -> dict[str, list[Read]]:
    from experiments.recipes.load import load_recipe, read_params
    from experiments.scoring.config import read_rubric, settings_from
    from finetune.gsb.votes import read_votes
    from pretrain.codecs.load import load_codecs
    from pretrain.data.manifest import read_manifest
    from pretrain.data.stream.store import LatentStore
    from pretrain.jsonl import scan
    from pretrain.media.read import probe, read_media
    from pretrain.media.stills import read_image
    from pretrain.model.checkpoint import load_model
    from pretrain.prompt import check_files, read_prompts
    from pretrain.titan.safe_dcp import read_metadata

    def recipe_of(path: Path) -> None:
        load_recipe("mini", path)
        load_recipe(str(read_params(path).get("recipe", "mini")))

    def metadata_of(path: Path) -> None:
        with path.open("rb") as file:
            read_metadata(file, str(path))

    media = [lambda path: read_media(path, want_video=None, want_audio=None), probe, read_image]
    return {
        "rubric": [read_rubric, lambda path: settings_from([], path, [], [])],
        "params": [recipe_of],
        "prompts": [lambda path: check_files(read_prompts(path))],
        "votes": [read_votes],
        "manifest": [lambda path: read_manifest(path, 1.0)],
        "model": [load_model],
        "codec": [load_codecs],
        "set": [LatentStore],
        "state": [metadata_of],
        "media": [*media],
        "archive": [*media, lambda path: list(scan(path)), read_prompts],
    }


def tried(read: Read, path: Path) -> str:
    """What is wrong with how a file was taken or refused, "" if nothing."""
    started = time.perf_counter()
    try:
        read(path)
    except (ValueError, OSError) as error:
        from experiments.errors import as_line
        from pretrain.terminal import shown

        line = shown(as_line(error))
        if "\n" in line or "\x1b" in line or len(line) > 5000:
            return f"not one line: {line[:300]!a}"
    except BaseException as error:
        return f"{type(error).__name__}: {ascii(str(error))[:300]}"
    spent = time.perf_counter() - started
    return f"{spent:.0f} s" if spent > MAX_SECONDS else ""


def main(arguments: list[str]) -> None:
    folder, first, count = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    private = folder / "private"
    by_kind, made = readers(), Templates(folder / "templates")
    opened: list[str] = []
    watching = [""]

    def audit(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and watching[0] and str(private) in os.path.realpath(str(details[0])):
            opened.append(watching[0])
        elif watching[0] and event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect"):
            opened.append(f"{watching[0]} {event}")

    sys.addaudithook(audit)
    with Path("/proc/self/statm").open() as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MORE_MEMORY, taken + MORE_MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    findings, counts = [], Counter()
    for seed in range(first, first + count):
        draw = random.Random(seed)
        kind = draw.choice(sorted(by_kind))
        where = folder / "work" / str(seed)
        where.mkdir(parents=True)
        path = write(draw, kind, where, made, private)
        # prompts and manifests name the user's own files, which are read
        watching[0] = "" if kind in ("prompts", "manifest") else f"{kind} {seed}"
        counts[kind] += 1
        findings += [f"{kind} {seed}: {wrong}" for read in by_kind[kind] if (wrong := tried(read, path))]
        watching[0] = ""
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"findings": findings, "opened": opened, "counts": counts, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1:])
