"""What a page keeps: clips that it fetched, what they were asked for with, and their scores.

Under `root`, mode 0700: clips/ID.mp4|wav (the oldest go beyond `most_bytes`, the service still has them for a
while), asked/ID.json, comparisons/KEY.json, voices/SHA256.wav and frames/SHA256.png as they were sent.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.generation_client import GenerationServer
from orchestration.private_files import private_folder, write_private
from pretrain.config import one_line
from pretrain.files import read_json, sha256_of
from pretrain.media.read import read_media, read_metadata
from pretrain.media.stills import read_image
from pretrain.media.write import write_wav

SUFFIXES = {"video": ".mp4", "audio": ".wav"}
SENT_AS_THEY_ARE, PICTURES = (".wav", ".flac"), (".png", ".jpg", ".jpeg")
VOICE_RATE_HZ = 16_000
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass
class PageStore:
    """`most_bytes`: of clips."""

    root: Path
    most_bytes: int = 4 << 30
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _fetching: dict[str, threading.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        for name in ("", "clips", "asked", "voices", "frames", "votes", "comparisons"):
            private_folder(self.root / name)

    def keep_voice(self, path: Path) -> Path:
        """A copy of a recording by its content; what is neither wav nor flac becomes a wav of 16 kHz.

        Raises MediaError for what is no sound, OSError on a full disk.
        """
        suffix = path.suffix.lower()
        kept = self.root / "voices" / f"{sha256_of(path)}{suffix if suffix in SENT_AS_THEY_ARE else '.wav'}"
        if kept.is_file():
            return kept
        if suffix in SENT_AS_THEY_ARE:
            write_private(kept, path.read_bytes())
        else:
            sound = read_media(path, want_video=False, sample_rate_hz=VOICE_RATE_HZ)
            assert sound.waveform is not None
            write_wav(kept, sound.waveform, VOICE_RATE_HZ)
        return kept

    def keep_frame(self, path: Path) -> Path:
        """A copy of a picture by its content; what is neither png nor jpeg becomes a png.

        Raises MediaError for what is no picture, OSError on a full disk.
        """
        suffix = path.suffix.lower()
        as_it_is = suffix in PICTURES
        kept = self.root / "frames" / f"{sha256_of(path)}{suffix if as_it_is else '.png'}"
        if not kept.is_file() and as_it_is:
            write_private(kept, path.read_bytes())
        elif not kept.is_file():
            written = io.BytesIO()
            Image.fromarray(read_image(path)).save(written, "png")
            write_private(kept, written.getvalue())
        return kept

    def note(self, id: str, asked: Mapping[str, Any]) -> None:
        """What the service does not tell again of a job: its files, and the boxes of faces."""
        write_private(self._asked(id), _as_json(asked))

    def asked(self, id: str) -> dict[str, Any]:
        """{} for a job that was not made on this page."""
        return _read(self._asked(id))

    def keep_comparison(self, comparison: Mapping[str, Any]) -> str:
        """Its key, by which a browser finds it again after the page or the server was closed."""
        key = secrets.token_hex(16)
        write_private(self.root / "comparisons" / f"{key}.json", _as_json(comparison))
        return key

    def comparison(self, key: Any) -> dict[str, Any]:
        """{} where there is none."""
        if not isinstance(key, str) or not _ID.fullmatch(key):
            return {}
        return _read(self.root / "comparisons" / f"{key}.json")

    def clip(self, job: Mapping[str, Any]) -> dict[str, Path]:
        """Files by variant (video, audio), as far as they are here whole."""
        paths = {variant: self._clip(str(job["id"]), variant) for variant in SUFFIXES}
        return {variant: path for variant, path in paths.items() if path.is_file()}

    def fetch(self, server: GenerationServer, job: Mapping[str, Any]) -> dict[str, Path]:
        """Files of a completed job, fetched where they are not here. Raises ValueError or OSError."""
        with self._lock:
            alone = self._fetching.setdefault(str(job["id"]), threading.Lock())
        with alone:  # several windows may show one clip
            for variant in SUFFIXES:
                path = self._clip(str(job["id"]), variant)
                if job.get(f"{variant}_bytes") and not path.is_file():
                    server.fetch(str(job["id"]), path, variant)
                    self._make_room(str(job["id"]))
        return self.clip(job)

    def lineage(self, job: Mapping[str, Any], server: str, scores: Any) -> dict[str, Any]:
        """Of a clip, as far as the service, its file and this page know."""
        asked, files = self.asked(str(job["id"])), self.clip(job)
        video = files.get("video")
        return {
            "service": server,
            "job": dict(job),
            "files": {variant: {"sha256": sha256_of(path)} for variant, path in files.items()},
            "marks": _marks(video) if video else {},
            "references": [path and {"sha256": Path(path).stem} for path in asked.get("references", ())],
            "first_frame": asked.get("first_frame") and {"sha256": Path(asked["first_frame"]).stem},
            "scores": scores,
        }

    def write_lineage(self, job: Mapping[str, Any], server: str, scores: Any) -> Path:
        """ID.json beside the clip."""
        path = self._clip(str(job["id"]), "video").with_suffix(".json")
        content = _as_json(self.lineage(job, server, scores))
        if not path.is_file() or path.read_bytes() != content:
            write_private(path, content)
        return path

    def forget(self, id: str) -> None:
        """The clip of a job and what was noted of it; voices and frames may be others' too."""
        for path in (*self._files(id), self._asked(id)):
            path.unlink(missing_ok=True)

    def _make_room(self, wanted: str) -> None:
        with self._lock, suppress(FileNotFoundError):
            files = [(path.stat(), path) for path in (self.root / "clips").iterdir()]
            held = sum(status.st_size for status, _ in files)
            for status, path in sorted(files, key=lambda file: file[0].st_mtime):
                if held <= self.most_bytes:
                    break
                if path.stem != wanted:
                    path.unlink(missing_ok=True)
                    held -= status.st_size

    def _files(self, id: str) -> list[Path]:
        return [self._clip(id, "video").with_suffix(suffix) for suffix in (*SUFFIXES.values(), ".json")]

    def _clip(self, id: str, variant: str) -> Path:
        return self.root / "clips" / f"{_checked(id)}{SUFFIXES[variant]}"

    def _asked(self, id: str) -> Path:
        return self.root / "asked" / f"{_checked(id)}.json"


def _as_json(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values, indent=2, ensure_ascii=False)}\n".encode()


def _read(path: Path) -> dict[str, Any]:
    """{} where nothing was kept."""
    return read_json(path, "remove it") if path.is_file() else {}


def _marks(video: Path) -> dict[str, str]:
    """What the file says of itself, or why it cannot be read."""
    try:
        return read_metadata(video)
    except ValueError as error:
        return {"unreadable": one_line(error, 300)}


def _checked(id: str) -> str:
    """An id as a name of files. Raises ValueError for what a service must not call a job."""
    if not _ID.fullmatch(id):
        raise ValueError(f"id {id[:40]!r}: no name for files; is it the service?")
    return id
