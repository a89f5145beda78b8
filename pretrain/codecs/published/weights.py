"""Weight files of published parts: checked for presence, size and digest, loaded tensor by tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.files import read_json
from pretrain.progress import track

if TYPE_CHECKING:
    import torch
    from torch import nn

_CHUNK_BYTES = 64 * 2**20
_WHOLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_SHOWN, _SHOWN_FROM = 3, 16  # names in an error; pieces that take seconds

Shapes = dict[str, tuple[int, ...]]
Digests = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """A part's repository and licence, for error messages."""

    what: str
    repository: str
    licence: str

    @property
    def advice(self) -> str:
        return f"get it from {self.repository} ({self.licence})"


def part_folder(given: Path, inner: str, source: Source) -> Path:
    """`given`, or its subfolder `inner` as in pipelines; FileNotFoundError without a config.json."""
    for folder in (given, given / inner):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{given}: no config.json of {source.what} here nor in {inner}/; {source.advice} and name its folder"
    )


def read_config(folder: Path, source: Source) -> dict[str, Any]:
    """The part's config.json. Raises FileNotFoundError or ValueError in one line."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {source.advice} again")
    return read_json(path, f"{source.advice} again")


def expect(config: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, source: Source) -> None:
    """Raises ValueError naming every setting of `config` that is not as `wanted`."""
    wrong = [
        f"{key} {config.get(key)!r}, expected {value!r}"
        for key, value in wanted.items()
        if config.get(key) != value
    ]
    if wrong:
        raise ValueError(f"{folder / 'config.json'}: not {source.what}: {'; '.join(wrong)}; {source.advice}")


def weight_files(folder: Path, source: Source) -> list[Path]:
    """A part's safetensors files, one or those of its index. Raises FileNotFoundError or ValueError."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names = sorted(set(read_json(index, f"{source.advice} again").get("weight_map", {}).values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise FileNotFoundError(
                f"{folder / missing[0]}: missing ({len(missing)} of {len(names)} shards); {source.advice} "
                "again"
            )
        if names:
            return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    chosen = [path for path in found if path.name in _WHOLE] or found
    if len(chosen) == 1:
        return chosen
    if chosen:
        raise ValueError(
            f"{folder}: {len(chosen)} safetensors files ({', '.join(path.name for path in chosen)}) and no "
            "index; keep one"
        )
    pickled = (
        " (only pickled weights, which are not read)"
        if [*folder.glob("*.bin"), *folder.glob("*.pth")]
        else ""
    )
    raise FileNotFoundError(f"{folder}: no safetensors file of {source.what}{pickled}; {source.advice}")


def tensor_shapes(files: Sequence[Path], source: Source) -> Shapes:
    """Names and shapes from the files' headers. Raises a one-line ValueError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    shapes: Shapes = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: truncated or not a safetensors file ({error}); {source.advice} again"
            ) from None
    return shapes


def check_shapes(found: Shapes, wanted: Shapes, folder: Path, source: Source) -> None:
    """Raises ValueError in one line that names what is missing, unknown or misshapen."""
    misshapen = [
        f"{name} {list(found[name])} not {list(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (
            ("missing", sorted(wanted.keys() - found.keys())),
            ("unknown", sorted(found.keys() - wanted.keys())),
            ("misshapen", misshapen),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{folder}: of {len(wanted)} tensors {'; '.join(problems)}; not the weights of {source.what}"
        )


def shapes_of(network: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def fill(network: nn.Module, folder: Path, source: Source, dtype: torch.dtype, device: str) -> nn.Module:
    """Puts the folder's weights into the network, every one; in evaluation mode, without gradients."""
    from safetensors.torch import load_file
    from torch import nn

    files = weight_files(folder, source)
    check_shapes(tensor_shapes(files, source), shapes_of(network), folder, source)
    for path in files:
        network.load_state_dict(load_file(path), strict=False, assign=True)
    # diffusers' own `to` warns without need
    return nn.Module.to(network, device=device, dtype=dtype).eval().requires_grad_(False)


def digests(folder: Path, files: Sequence[Path]) -> Digests:
    """sha256, bytes and time of change of each file, by its name in `folder`."""
    sizes = {path: path.stat().st_size for path in files}
    total = sum(1 + size // _CHUNK_BYTES for size in sizes.values())
    hashes = {path: hashlib.sha256() for path in files}
    chunks = _chunks(files)
    for path, chunk in (
        track(chunks, total, f"{folder.name}: 64 MiB pieces hashed") if total > _SHOWN_FROM else chunks
    ):
        hashes[path].update(chunk)
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": hashes[path].hexdigest(),
            "bytes": sizes[path],
            "mtime_ns": path.stat().st_mtime_ns,
        }
        for path in files
    }


def check_unchanged(folder: Path, recorded: Digests, source: Source) -> None:
    """Raises FileNotFoundError or ValueError where a file is not the recorded one.

    One of the recorded size and time of change is taken as it is, so that gigabytes are hashed once and not
    at every start.
    """
    touched = []
    for name, facts in recorded.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: part of the codec is missing; {source.advice} again or run `nava codec import`"
            )
        if path.stat().st_size != facts["bytes"]:
            sizes = f"{path.stat().st_size} bytes, {facts['bytes']} when the codec was made"
            raise ValueError(f"{path}: {sizes}; get the file again or run `nava codec import` again")
        if path.stat().st_mtime_ns != facts["mtime_ns"]:
            touched.append(path)
    for name, facts in digests(folder, touched).items() if touched else ():
        if facts["sha256"] != recorded[name]["sha256"]:
            raise ValueError(
                f"{folder / name}: other content than when the codec was made; run `nava codec import` again"
            )


def fingerprint(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """16 hexadecimal digits of what shapes latents."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _chunks(files: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    for path in files:
        with path.open("rb") as file:
            yield path, file.read(_CHUNK_BYTES)
            while chunk := file.read(_CHUNK_BYTES):
                yield path, chunk
