"""The record of a training that is kept although no run of it is recorded here, as after `dvc pull` from a
remote that has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.runs.inputs import parents_of
from experiments.runs.lineage import checkpoint_of
from experiments.runs.outputs import KnownOutputs, digest_of, files_of
from experiments.runs.provenance import fingerprint, lock_hash, stage_inputs
from experiments.runs.run import RunRecord, read_record
from pretrain.files import write_json

UNKNOWN = "unknown"


def record_kept(stage: str, recipe: str, config: Mapping[str, Any], layout: Layout, root: Path) -> None:
    """Write `out/runs/<stage>.json` where it is missing, as it is an output of the stage for DVC.

    It holds what is known: inputs, settings and content. The commit is "unknown", and the key is that of a
    run that made this very content, else empty, so that lineage goes on looking for it in MLflow.
    """
    if read_record(layout, stage):
        return
    output, known = layout.output_of(stage), KnownOutputs(layout, root)
    inputs, files = stage_inputs(stage, root), files_of(output)
    record = RunRecord(
        stage=stage,
        key=known.maker_of(output),
        recipe=recipe,
        git_commit=UNKNOWN,
        git_dirty=False,
        lock_md5=lock_hash(root),
        inputs=inputs,
        parents=parents_of(inputs, known),
        config=dict(config),
        output=str(output),
        started_at="",
        duration_s=0.0,
        fingerprint=fingerprint(inputs, config, stage),
        output_md5=digest_of(files),
        files=files,
        checkpoint=checkpoint_of(output / "model"),
    )
    write_json(layout.runs / f"{stage}.json", asdict(record), indent=1, default=str)
