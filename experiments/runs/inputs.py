"""What a run reads, by its own paths, and the runs that made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.layout import PRETRAIN_STAGES, STAGES, Layout
from experiments.runs.outputs import KnownOutputs
from experiments.runs.provenance import md5_of, plain_path, read_pipeline, stage_inputs
from pretrain.files import read_json, sha256_of

CHECKPOINT = "checkpoint:"  # prefix of the digest of a model: its id
SHA256 = "sha256:"  # prefix of digests of external inputs
CODE = ("experiments", "finetune", "orchestration", "pretrain", "rewards")
# what identifies a folder that is too large to hash, in the order of preference
_DESCRIPTIONS = ("config.json", "manifest.json", "store.json", "index.jsonl")


def is_code(path: str) -> bool:
    """True for the code among a run's inputs, which DVC watches by paths in the repository."""
    return path.split("/")[0] in CODE


def is_code_input(path: str) -> bool:
    """The same without data that a user keeps in folders of these names."""
    return is_code(path) and Path(path).suffix in ("", ".py")


def inputs_read(stage: str, job: Any) -> dict[str, str]:
    """Path -> md5 of what a stage reads: its code, and the data of its own layout and settings.

    job: a StageJob, which lies above this package.
    """
    layout, root = job.layout, job.root
    listed = stage_inputs(stage, root)
    if stage.startswith("pretrain_"):
        return _of_pretraining(stage, job, listed)
    if stage == "align":
        align = job.recipe.align
        unread = {"out/votes", "out/rollouts"} if not align.needs_pairs else set()
        unread |= {"out/chosen"} if not job.recipe.alignment.curated_prompts else set()
        listed = {path: md5 for path, md5 in listed.items() if path not in unread}
    if (layout.out, layout.reports) == (Layout.out, Layout.reports):
        return listed
    code = {path: md5 for path, md5 in listed.items() if is_code(path)}
    deps = (plain_path(dep) for dep in read_pipeline(root).get(stage, {}).get("deps", ()))
    data = (_in_layout(path, layout) for path in deps if not is_code(path))
    return code | {str(path): digest_of_input(root / path) for path in data if (root / path).exists()}


def _of_pretraining(stage: str, job: Any, listed: Mapping[str, str]) -> dict[str, str]:
    """The sets and the model that a pretraining stage takes, which the recipe and --from may change."""
    config, layout, root = job.recipe.pretrain, job.layout, job.root
    own = bool(config.latents) or job.init_from is not None
    if listed and not own and (layout.out, tuple(config.stages)) == (Layout.out, PRETRAIN_STAGES):
        return dict(listed)
    name = stage.removeprefix("pretrain_")
    listed = listed or stage_inputs("pretrain_stage1", root)
    found = {path: md5 for path, md5 in listed.items() if is_code(path)}
    latents = Path(config.latents) if config.latents else layout.latents
    taken = config.stage(name)
    for path in (latents / one for one in sorted({*taken.sets, *taken.audio_sets})):
        if (root / path).exists():  # of a URL nothing can be hashed here; the identity of the run has it
            found[str(path)] = digest_of_input(root / path)
    names = list(config.stages)
    earlier = names[: names.index(name)]
    model = job.init_from or (layout.model(earlier[-1]) if earlier else None)
    if model is not None and Path(model).exists():
        found[str(model)] = digest_of_input(Path(model))
    return found


def _in_layout(path: str, layout: Layout) -> Path:
    """A path of dvc.yaml, below the folders of this layout."""
    for folder, actual in ((Layout.out, layout.out), (Layout.reports, layout.reports)):
        if Path(path).is_relative_to(folder):
            return actual / Path(path).relative_to(folder)
    return Path(path)


def digest_of_input(path: Path) -> str:
    """What identifies an input: the id of a model, else the md5 of a file, or of the file that describes a
    folder (of data, an index with the checksums of its shards), else of all of it.

    Raises FileNotFoundError if it is missing.
    """
    described = describing_file(path)
    if described.name == "config.json" and path.is_dir():
        checkpoint = read_json(described, "give another folder").get("checkpoint_id")
        if checkpoint:
            return f"{CHECKPOINT}{checkpoint}"
    return md5_of(described)


def describing_file(path: Path) -> Path:
    """The file that stands for a folder, or the path itself."""
    return next((path / name for name in _DESCRIPTIONS if (path / name).is_file()), path)


def digests_of_inputs(*paths: Path | None) -> dict[str, str]:
    """Path -> digest of the inputs that exist."""
    return {str(path): digest_of_input(path) for path in paths if path is not None and path.exists()}


def parents_of(inputs: Mapping[str, str], known: KnownOutputs) -> dict[str, str]:
    """Stage -> key of the runs that made the inputs, the latest stage first.

    An input that no known run made as it was read has no parent here.
    """
    found: dict[str, str] = {}
    for path, digest in inputs.items():
        key = "" if is_code(path) else maker_of_input(path, digest, known)
        if key and key not in found.values():
            name = stage_of_key(key)
            found[name if name not in found else f"{name} {path}"] = key
    return dict(sorted(found.items(), key=lambda item: _order(item[0]), reverse=True))


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def maker_of_input(path: str, digest: str, known: KnownOutputs) -> str:
    """Key of the run that made an input as it was read; "" if none is known."""
    if digest.startswith(CHECKPOINT):
        place = known.root / path
        made = known.with_checkpoint(digest.removeprefix(CHECKPOINT), place)
        # records made before checkpoints were in them know the files alone
        still = place.exists() and digest_of_input(place) == digest
        return made.key if made else known.maker_of(describing_file(place)) if still else ""
    if found := known.maker_of_digest(path, digest):
        return found
    return next((known.maker_of(file) for file in _still(known.root / path, digest)), "")


def _still(path: Path, digest: str) -> list[Path]:
    """The file that an input's digest is of, where it lies there unchanged."""
    files = [file for name in _DESCRIPTIONS if (file := path / name).is_file()]
    files += [path] if path.is_file() else []
    if digest.startswith(SHA256):
        return [file for file in files if sha256_of(file) == digest.removeprefix(SHA256)]
    return [file for file in files if md5_of(file) == digest]


def stage_of_key(key: str) -> str:
    """The name in a run's key: date-time-microseconds-NAME-random."""
    return "-".join(key.split("-")[3:-1]) or "run"
