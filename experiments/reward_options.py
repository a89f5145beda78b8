"""Options of the catalog's rewards where they read what the pipeline's stages made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.data.corpus.bank import vocabulary


def reward_options(
    names: Sequence[str], corpus: Path, syncnet: Path, words: Sequence[str] = (), num_processes: int = 1
) -> dict[str, dict[str, Any]]:
    """Options of each of `names` as plain JSON values; {} for a reward that reads nothing of the pipeline.

    words: what can be heard at all, () = the words of the speech bank.
    """
    hearing = {"vocabulary": list(words or vocabulary()), "num_processes": num_processes}
    known: dict[str, dict[str, Any]] = {name: hearing for name in names if "pocketsphinx" in name}
    known["sync_mini"] = {"model": str((syncnet / "reward").absolute())}
    known["sync_judge"] = {"model": str((syncnet / "judge").absolute())}
    known["voice_accuracy_resemblyzer"] = {"bank": str((corpus / "references").absolute())}
    return {name: known.get(name, {}) for name in names}
