"""Options of catalog rewards that read outputs of pipeline stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.data.corpus.bank import vocabulary
from rewards.catalog import CATALOG
from rewards.options import fill
from rewards.recipes.preference import PreferenceOptions, needed_rewards


def reward_options(
    names: Sequence[str],
    corpus: Path,
    syncnet: Path,
    words: Sequence[str] = (),
    num_processes: int = 1,
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Options of each of `names` as JSON values, overridden by `given`; {} if none read the pipeline.

    words: the recogniser's vocabulary, () = the words of the speech bank. Feature rewards of `preference` get
    their options too.
    """
    hearing = {"vocabulary": list(words or vocabulary()), "num_processes": num_processes}
    nets = {"sync_mini": syncnet / "reward", "sync_judge": syncnet / "judge"}

    def known(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
        if name in nets:
            return {"model": str(nets[name].absolute()), **own}
        if name == "voice_accuracy_resemblyzer":
            return {"bank": str((corpus / "references").absolute()), **own}
        return {**(hearing if "pocketsphinx" in name else {}), **own}

    options = {name: known(name, (given or {}).get(name) or {}) for name in names}
    return {
        name: preference_options(own, known) if name == "preference" else own for name, own in options.items()
    }


def preference_options(
    given: Any, known: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """Options of the reward `preference` and, by `known(name, options given)`, of its feature rewards.

    Raises FileNotFoundError or ValueError in one line as `needed_rewards`.
    """
    options = fill(PreferenceOptions, given, "preference")
    inner = {
        name: dict(known(name, options.options.get(name) or {})) for name in needed_rewards(options, CATALOG)
    }
    assert options.model is not None
    return {"model": str(options.model.absolute()), "options": inner}
