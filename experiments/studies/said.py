"""What a study's prompts ask for: those of the same words and voices fail alike, and are drawn together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

from pretrain.prompt import PromptRow, read_prompts


def said_by_prompts(prompts: Path, data_ids: Sequence[str]) -> list[Hashable]:
    """The words and voices that each prompt of a JSONL asks for; one that is not in it is alone. Raises
    FileNotFoundError or ValueError in one line where the prompts cannot be read."""
    rows = {row.data_id: said_in(row) for row in read_prompts(prompts)}
    return [rows.get(name, name) for name in data_ids]


def said_in(row: PromptRow) -> Hashable:
    """The words of a prompt and its voices, by name or by their references."""
    voices = row.meta.get("voices") or [str(path) for path in row.reference_paths]
    return tuple(span.text for span in row.prompt.spans), tuple(voices)
