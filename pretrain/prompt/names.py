"""Names of clips: fit for files on every system."""

from __future__ import annotations

from typing import Any

from pretrain.files import MAX_FILE_NAME_BYTES
from pretrain.prompt.characters import broken_character, hidden_characters

# Left around a name: for `-k9999` of a rollout and `.mp4` or `.safetensors`. (Temporary names are shortened.)
_AROUND = "-k9999.mp4..4194304.tmp"
MAX_NAME_BYTES = MAX_FILE_NAME_BYTES - len(_AROUND)
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"]
)


def name_problem(name: Any) -> str:
    """What is wrong with a data_id, which names files; "" if nothing is.

    Refused: no text, slashes, a leading dot, blanks or dots at an end, control and invisible characters, half
    surrogate pairs, device names of Windows, more than `MAX_NAME_BYTES` bytes of UTF-8.
    """
    if not isinstance(name, str) or not name.strip():
        return f"expected a name fit for a file, got {name!r}; leave the key out or give a name"
    if broken := broken_character(name):
        return f"expected a name fit for a file, got {name!r}: {broken}"
    if set(name) & set("/\\\t\n\r") or name.startswith("."):
        return f"expected a name fit for a file, got {name!r}; leave out slashes and a leading dot"
    if name != name.strip() or name.endswith("."):
        return f"{name!r} has blanks around it or a dot at its end, which file systems drop; remove them"
    if hidden := hidden_characters(name):
        return f"{name!r} has U+{ord(hidden[0]):04X}, which cannot be seen; remove it"
    if name.split(".")[0].strip().lower() in _DEVICES:
        return f"{name!r} is the name of a device on Windows; give another"
    if (size := len(name.encode())) > MAX_NAME_BYTES:
        return (
            f"{size} bytes are too long for a file name ({name[:24]!r}...); {MAX_NAME_BYTES} bytes of UTF-8 "
            "leave room for what is put around it"
        )
    return ""
