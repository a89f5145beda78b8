"""Digests of what the pipeline makes, a line each, for tests/golden_pipeline.py.

Only content counts: of safetensors the tensors, of media the decoded samples, of JSON the values without
running times and short hashes. Names of JSON fields and texts have lines of their own, so that a renamed
metric or another wording changes that line alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image

# names of fields: times, and a count of clips that is a function of steps and batch
VOLATILE = re.compile(
    r"(^|[/_])seconds([/_]|$)|_per_s(_per_rank)?$|^mtime_ns$|^clips_seen$|^(time|memory)/|^mfu_percent$"
)
# Identities: some are over names of settings or modules, absolute paths, or files that hold seconds; those
# over weights say no more than the tensors do.
SHORT_HASH = re.compile(r"[0-9a-f]{16}")
FILE_HASHES = {"manifest.json": {"shards", "index_sha256", "index_bytes"}}  # of bytes, with their metadata
SKIPPED_NAMES = {"resolved.json", "run.json"}  # absolute paths, module names
SKIPPED_FOLDERS = {"checkpoint"}  # of DCP; the exported models are digested
MEDIA = {".mp4": "frames", ".wav": "samples", ".png": "pixels"}
METRICS = "metrics.jsonl"  # a line for each row: the first step or round that differs is seen
REPORTS = ("errors", "demo", "alignment", "score", "gsb_stats", "plan_mini", "plan_nava_6b")
IN_CLEAR = {METRICS, *(f"{name}.json" for name in REPORTS)}
NUM_IN_CLEAR = 4


def lines_of(output: Path, root: Path) -> Iterator[str]:
    """Of each file of `output`, a file or folder under `root`; media of one kind and folder share a line."""
    files = [output]
    if output.is_dir():
        files = sorted(path for path in output.rglob("*") if path.is_file() and _counts(path, root))
        listed = _sha(str(path.relative_to(root)) for path in files)
        yield f"files {output.relative_to(root)} {len(files)} {listed}"
    grouped: dict[tuple[Path, str], list[Path]] = {}
    for path in files:
        if path.suffix in MEDIA:
            grouped.setdefault((path.parent, path.suffix), []).append(path)
        elif path.suffix in READERS:
            yield from READERS[path.suffix](path, str(path.relative_to(root)))
    for (folder, suffix), paths in grouped.items():
        digest = _sha(part for path in paths for part in (path.name, *_media(path)))
        where = folder if output.is_dir() else output
        yield f"{MEDIA[suffix]} {where.relative_to(root)} {len(paths)} {suffix[1:]} {digest}"


def _counts(path: Path, root: Path) -> bool:
    skipped = SKIPPED_FOLDERS.intersection(path.relative_to(root).parts) or path.name in SKIPPED_NAMES
    return not (skipped or path.name.startswith(".") or path.suffix == ".txt")


def _json_lines(rows: list[Any], path: Path, name: str, counted: str = "") -> Iterator[str]:
    """Numbers, texts and names of fields, and of some files the first numbers (of the last row) in clear."""
    texts: list[str] = []
    names: dict[str, None] = {}
    values = _values(rows, "", texts, names, FILE_HASHES.get(path.name, set()))
    if path.name == METRICS:
        for number, row in enumerate(values):
            yield f"values {name} row {number} {_sha([json.dumps(row)])}"
    else:
        yield f"values {name} {counted}{_sha([json.dumps(values)])}"
    if texts:
        yield f"texts {name} {len(texts)} {_sha(texts)}"
    yield f"names {name} {len(names)} {_sha(sorted(names))}"
    if path.name in IN_CLEAR and values:
        shown = [f"{value:.6g}" for value in _floats(values[-1])][:NUM_IN_CLEAR]
        yield f"numbers {name} {' '.join(shown)}"


def _values(value: Any, where: str, texts: list[str], names: dict[str, None], dropped: set[str]) -> Any:
    """In the order of the file, mappings as lists of values; `texts` and `names` of fields are filled."""
    if isinstance(value, dict):
        kept = []
        for key, item in value.items():
            if not (VOLATILE.search(key) or key in dropped):
                names[f"{where}.{key}"] = None
                kept.append(_values(item, f"{where}.{key}", texts, names, dropped))
        return kept
    if isinstance(value, list):
        return [_values(item, where, texts, names, dropped) for item in value]
    if isinstance(value, str):
        texts.append("" if SHORT_HASH.fullmatch(value) else value)
        return ""
    return value


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for item in value:
            yield from _floats(item)
    elif isinstance(value, float):
        yield value


def _jsonl(path: Path, name: str) -> Iterator[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    yield from _json_lines(rows, path, name, f"{len(rows)} rows ")


def _json(path: Path, name: str) -> Iterator[str]:
    yield from _json_lines([json.loads(path.read_text())], path, name)


def _arrow(path: Path, name: str) -> Iterator[str]:
    rows = pa.ipc.open_file(str(path)).read_all().to_pylist()
    yield from _json_lines(rows, path, name, f"{len(rows)} rows ")


def _tensors(path: Path, name: str) -> Iterator[str]:
    """Names, dtypes, shapes and bytes, whatever the order in the file and its metadata."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    parts: list[str | bytes] = []
    for key, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        parts += [key, entry["dtype"], str(entry["shape"]), content[start + begin : start + end]]
    yield f"tensors {name} {len(header)} {_sha(parts)}"


def _html(path: Path, name: str) -> Iterator[str]:
    """Without embedded media, seconds of stages and the commit."""
    text = re.sub(r'base64,[^"]*', "", path.read_text())
    text = re.sub(r"<td>(\d+ s|[0-9a-f]{40}( with changes)?)</td>", "<td></td>", text)
    yield f"text {name} {len(text)} {_sha([text])}"


def _media(path: Path) -> list[str | bytes]:
    if path.suffix == ".wav":
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        return [f"{rate} {samples.shape}", samples.tobytes()]
    if path.suffix == ".png":
        with Image.open(path) as image:
            return [str(image.size), image.convert("RGB").tobytes()]
    parts: list[str | bytes] = []
    for kind in ("video", "audio"):
        with av.open(str(path)) as container:
            if not any(stream.type == kind for stream in container.streams):
                continue  # pictures alone
            for frame in container.decode(**{kind: 0}):
                assert isinstance(frame, av.VideoFrame | av.AudioFrame)
                array = np.ascontiguousarray(frame.to_ndarray())
                parts += [f"{kind} {frame.time} {array.shape}", array.tobytes()]
    return parts


def _sha(parts: Iterable[str | bytes]) -> str:
    """Of the parts, each with its length before it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()[:16]


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".arrow": _arrow,
    ".safetensors": _tensors,
    ".html": _html,
}
