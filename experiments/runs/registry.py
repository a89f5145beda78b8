"""Models of an MLflow registry as local folders: whole, in a cache, and never changed once they are there."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock

from experiments.runs.local_store import database_of
from experiments.runs.model_files import check_model_files
from experiments.runs.model_names import CODEC, digest_of_model, other_model
from experiments.runs.model_uri import ModelUri, is_registered, parse_model_uri
from experiments.runs.registry_store import RegisteredModel, RegistryStore, Unanswered
from experiments.runs.store_uri import connection_uri, store_uri
from pretrain.config import one_line
from pretrain.files import read_json, write_json

__all__ = ["fetched", "is_registered", "model_and_codec", "model_cache", "model_folder", "registered_tags"]

REFERENCE = "reference.json"  # what a run stores of a model that is too large to copy
FETCHED = "registered.json"  # in a fetched folder: what it is and where it comes from
CONTENT = ("config.json", "adapter.json", REFERENCE)
PARTIAL = ".partial-"


def model_cache(out: Path, root: Path = Path()) -> Path:
    """Where fetched models are kept: OUT/models in a repository of the pipeline, else the user's cache."""
    if (root / "dvc.yaml").is_file():
        return out / "models"
    from platformdirs import user_cache_path

    return user_cache_path("nava") / "models"


def model_folder(given: str | Path, out: Path, root: Path = Path(), shared: bool = False) -> Path:
    """A model, codec or adapter folder of the command line, fetched where it is named by the registry.

    shared: other machines read it, which see OUT. Raises ValueError as `fetched`.
    """
    if not is_registered(given):
        return Path(given)
    return fetched(str(given), out / "models" if shared else model_cache(out, root), root)


def model_and_codec(
    model: str | Path,
    codec: str | Path | None,
    out: Path,
    default: Path,
    root: Path = Path(),
    shared: bool = False,
) -> tuple[Path, Path]:
    """Folders of a model and of its codec, of the command line.

    Without `codec` it is the default one; of a registered model that was trained with another, the one that
    the registry has. Raises ValueError as `fetched`, and where the codec is in neither place.
    """
    place = model_folder(model, out, root, shared)
    if codec is not None:
        return place, model_folder(codec, out, root, shared)
    if not is_registered(model):
        return place, default
    wanted = str(read_json(place / "config.json", "give another model").get("codec_id") or "")
    if not wanted or digest_of_model(default) == f"{CODEC}:{wanted}":
        return place, default
    return place, model_folder(_codec_uri(str(model), wanted, root), out, root, shared)


def _codec_uri(model: str, codec_id: str, root: Path) -> str:
    try:
        uri = _store(model, root).codec(codec_id)
    except Unanswered as error:
        raise ValueError(f"{model}: its codec {codec_id} was not found, {error}; give --codec") from None
    if not uri:
        raise ValueError(f"{model}: its codec {codec_id} is not in {store_uri(root)}; give --codec")
    return uri


def registered_tags(*folders: Path) -> dict[str, str]:
    """Tags of a run that reads fetched models: nava.registered_model, their versions."""
    known = [json.loads((folder / FETCHED).read_text())["uri"] for folder in folders if _is_fetched(folder)]
    return {"nava.registered_model": ", ".join(known)} if known else {}


def _is_fetched(folder: Path) -> bool:
    return (folder / FETCHED).is_file()


def fetched(uri: str, cache: Path, root: Path) -> Path:
    """Folder of a model `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `models:/ID`.

    The store is asked every time, as aliases move and databases are made anew; files are fetched once. A
    version that is in the cache is used without a store that answers, and a line says so. A model that was
    stored by its path is that path. Raises ValueError in one line for a name that is none, for an unknown
    model, naming known ones, for files that are damaged, and where MLflow does not answer.
    """
    asked = parse_model_uri(uri)
    try:
        found = _store(uri, root).resolve(asked)
    except Unanswered as error:
        if (known := _known_copy(asked, cache, root)) is None:
            raise ValueError(f"{uri}: {error}") from None
        print(f"{uri}: {error}; the copy in {known} is used", file=sys.stderr)
        return _usable(uri, known)
    folder = _place(found, cache)
    if not _is_fetched(folder):
        _fetch(uri, found, folder, root)
    _check_identity(uri, found, folder, root)
    if asked.changes:
        print(f"{uri}: {found.uri}", file=sys.stderr)
    return _usable(uri, folder)


def _store(what: str, root: Path) -> RegistryStore:
    database = database_of(connection_uri(root))
    if database is not None and not database.is_file():
        raise ValueError(
            f"{what}: no MLflow here ({store_uri(root)}); set MLFLOW_TRACKING_URI, or give a model folder"
        )
    return RegistryStore(root)


def _place(found: RegisteredModel, cache: Path) -> Path:
    """A folder of its own for every model that ever had this name and version, in any store."""
    mark = hashlib.sha256(found.identity.encode()).hexdigest()[:8]
    return cache / quote(found.name, safe=" ") / f"{found.version}-{mark}"


def _known_copy(asked: ModelUri, cache: Path, root: Path) -> Path | None:
    """The copy of a version that was fetched from this very store; None without one, or of an alias."""
    if asked.changes:
        return None
    name, version = asked.name or asked.model_id, asked.version or "model"
    for folder in sorted((cache / quote(name, safe=" ")).glob(f"{version}-*")):
        if _is_fetched(folder):
            about = read_json(folder / FETCHED, "remove the folder")
            if (about.get("store"), about.get("uri")) == (store_uri(root), asked.text):
                return folder
    return None


def _check_identity(uri: str, found: RegisteredModel, folder: Path, root: Path) -> None:
    """Raises ValueError in one line where the files are another model than the store says. Versions that were
    sent by earlier versions of this code may have the files of a later training."""
    if digest_of_model(folder) and (other := other_model(folder, found.tags)):
        raise ValueError(
            f"{uri}: {store_uri(root)} has {other} there: another training had taken its folder when it was "
            "stored; give the folder of the model, or another version"
        )


def _fetch(uri: str, found: RegisteredModel, folder: Path, root: Path) -> None:
    """Download into a temporary folder that takes its place when it is whole; one process at a time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            for left in folder.parent.glob(f"{PARTIAL}{folder.name}-*"):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: it holds no lock
            if not _is_fetched(folder):
                _download(uri, found, folder, root)
    except OSError as error:
        raise ValueError(f"{uri}: not kept in {folder.parent} ({one_line(error)})") from None


def _download(uri: str, found: RegisteredModel, folder: Path, root: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{folder.name}-", dir=folder.parent))
    try:
        content = found.download(partial)
        if not any((content / name).is_file() for name in CONTENT):
            raise ValueError(f"{uri}: what is registered there is no model folder (no config.json)")
        _check_identity(uri, found, content, root)
        check_model_files(content, f"{uri} (fetched from {store_uri(root)})")
        about = {"uri": found.uri, "store": store_uri(root), "identity": found.identity}
        write_json(content / FETCHED, about, indent=1)
        content.chmod(0o777 & ~_umask())  # mkdtemp makes folders for their owner alone
        content.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """That of new folders, without changing it for other threads."""
    with tempfile.TemporaryDirectory() as folder:
        (made := Path(folder) / "x").mkdir()
        return 0o777 & ~made.stat().st_mode


def _usable(uri: str, folder: Path) -> Path:
    """The folder, or the one that it refers to."""
    reference = folder / REFERENCE
    if (folder / "config.json").is_file() or not reference.is_file():
        return folder
    tags = read_json(reference, "remove the folder")
    path = Path(tags.get("nava.path", ""))
    expected = tags.get("nava.checkpoint_id", "")
    config = path / "config.json"
    found = read_json(config, "restore it").get("checkpoint_id", "") if config.is_file() else "nothing"
    if found != expected:
        raise ValueError(
            f"{uri}: stored by its path {path}, where now lies {found} instead of {expected}; give its folder"
        )
    return path
