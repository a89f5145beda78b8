"""Versions of the rollout adapter: on disk for resuming, in the object store for the workers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.types import Role
from pretrain.files import replacing, save_tensors

FOLDER = "published"
_FILE = re.compile(r"version-(\d+)-(\w+)\.safetensors")


class Versions:
    """Version r holds the weights after r rounds.

    `put` stores tensors for the workers and returns a reference.
    """

    def __init__(self, out: Path, put: Callable[[Mapping[str, Tensor]], Any]) -> None:
        self.folder, self.put = out / FOLDER, put
        self.references: dict[str, Any] = {}  # by `key`
        self._lives = 0

    def publish(self, number: int, role: Role, tensors: Mapping[str, Tensor]) -> None:
        """Publish a version. Raises OSError on a failed write."""
        with replacing(self.path(number, role)) as path:
            save_tensors({key: value.contiguous() for key, value in tensors.items()}, path)
        self.references[self.key(name(number, role))] = self.put(tensors)

    def reference(self, number: int, role: Role) -> Any:
        """Reference to a version, loaded from disk if this process has not published it.

        Raises ValueError if it is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        key, path = self.key(name(number, role)), self.path(number, role)
        if key not in self.references:
            try:
                self.references[key] = self.put(load_file(path))
            except (SafetensorError, FileNotFoundError) as error:
                hint = (
                    "the rounds ahead were rolled out by it; go on with ray.staleness=0 in another "
                    "folder, or start over"
                )
                raise ValueError(f"{path}: not a whole safetensors file ({error}); {hint}") from None
        return self.references[key]

    def forget(self) -> None:
        """Drop versions of a run that was restored from a checkpoint: they are published again."""
        self.references.clear()
        self._lives += 1

    def key(self, version: str) -> str:
        """Cache key of a version for workers.

        A republished version gets another key, because it may differ by rounding.
        """
        return f"{version}-{self._lives}"

    def retain(self, oldest: int) -> None:
        """Drop versions before `oldest`."""
        for path in self.folder.glob("version-*"):
            if (found := _FILE.fullmatch(path.name)) and int(found[1]) < oldest:
                path.unlink(missing_ok=True)
                self.references.pop(self.key(name(int(found[1]), found[2])), None)  # type: ignore[arg-type]

    def path(self, number: int, role: Role) -> Path:
        return self.folder / f"version-{number}-{role}.safetensors"


def name(number: int, role: Role) -> str:
    return f"{number}-{role}"


LEDGER = "rounds.jsonl"


class Ledger:
    """One row per finished round."""

    def __init__(self, out: Path) -> None:
        self.path = out / LEDGER

    def rows(self) -> list[dict[str, Any]]:
        """Complete rows; a truncated last row is skipped."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def cut(self, rounds: int) -> None:
        """Drop rows after `rounds`: those rounds are repeated."""
        kept = [row for row in self.rows() if row["round"] <= rounds]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def add(self, rounds: int, name: str, version: str, samples: Sequence[int], restarts: int) -> None:
        """Append a row for round `rounds` (from 1). restarts: workers replaced since the previous round."""
        ids = sorted(samples)
        digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
        row = {
            "round": rounds,
            "task": name,
            "version": version,
            "clips": len(ids),
            "digest": digest,
            "restarts": restarts,
            "samples": ids,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
