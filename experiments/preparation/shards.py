"""Files of a large set in folders of a thousand: file systems and people are slow in larger ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from experiments.preparation.assemble import Assembled

FILES_PER_FOLDER = 1000


def sharded(assembled: Assembled, most: int = FILES_PER_FOLDER) -> Assembled:
    """The set with `clips/a.mp4` as `clips/00000/a.mp4` where `clips` would have more than `most` files, and
    the same for `references` and `rejected`. The order of the set decides, not that of the work."""
    names = [*assembled.files, *assembled.references, *assembled.given_references]
    moved = _moved(names, most)
    if not moved:
        return assembled
    return replace(
        assembled,
        rows=[_row(row, moved) for row in assembled.rows],
        rejected=[
            {**one, "preview": moved.get(one["preview"], one["preview"])} if one.get("preview") else one
            for one in assembled.rejected
        ],
        files={moved.get(name, name): file for name, file in assembled.files.items()},
        references={moved.get(name, name): files for name, files in assembled.references.items()},
        given_references={moved.get(name, name): file for name, file in assembled.given_references.items()},
    )


def _moved(names: Iterable[str], most: int) -> dict[str, str]:
    """Old name -> new name of files in folders that are too full."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        folders[name.partition("/")[0]].append(name)
    return {
        name: f"{folder}/{place // most:05d}/{name.partition('/')[2]}"
        for folder, some in folders.items()
        if len(some) > most
        for place, name in enumerate(some)
    }


def _row(row: Mapping[str, Any], moved: Mapping[str, str]) -> dict[str, Any]:
    info = row["video_info"][0]
    paths = [moved.get(path, path) if path else path for path in row["meta"]["reference_paths"]]
    return {
        **row,
        "video_info": [{**info, "data_path": moved.get(info["data_path"], info["data_path"])}],
        "meta": {**row["meta"], "reference_paths": paths},
    }
