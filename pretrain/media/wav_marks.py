"""What a wav says of itself: it has no tags of any name, as an mp4 has, so one comment has them all."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import soundfile

from pretrain.files import replacing


def mark_wav(path: Path, marks: Mapping[str, str]) -> None:
    """Put `marks` into a wav as a JSON object in its comment (ICMT of RIFF's INFO); its samples stay.

    The file changes as a whole or not at all.
    """
    content = io.BytesIO(path.read_bytes())
    with soundfile.SoundFile(content, "r+") as file:
        file.comment = json.dumps(dict(marks), ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def marks_of_wav(path: Path) -> dict[str, str]:
    """Those of `mark_wav`, {} where a wav has none. Raises soundfile's error for what is no wav."""
    with soundfile.SoundFile(path) as file:
        comment = file.comment
    try:
        found = json.loads(comment) if comment else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
