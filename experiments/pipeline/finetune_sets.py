"""The data of a fine-tuning: the given clips, encoded and checked for their sound, and the base's sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from finetune.sft.config import BASE, CLIPS, FinetuneConfig
from finetune.sft.sound_checks import of_rows, of_samples, spread
from pretrain.config import to_json
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.encoding.encode_launch import encode_places
from pretrain.data.encoding.encode_ranks import EncodeJob, SetJob
from pretrain.data.encoding.media_files import files_of, media_digest
from pretrain.data.encoding.parts import MANIFEST
from pretrain.data.encoding.units import split
from pretrain.data.manifest import ManifestRow, check_rejected, write_manifest
from pretrain.data.stream.buckets import BucketConfig
from pretrain.data.stream.store import LatentStore
from pretrain.files import read_json, sha256_of, write_json
from pretrain.generation.config import GenerateConfig
from pretrain.jsonl import FieldError
from pretrain.prompt import parse
from pretrain.randomness import stable_hash
from pretrain.recipe import PretrainConfig
from pretrain.storage import is_file, is_remote, list_folder, local_file, place
from pretrain.types import VIDEO_FRAMES_PER_LATENT

VALIDATION = "validation"
MADE_OF = "made_of.json"  # beside an encoded set: digests of its rows, their files, codec and settings
_CALLED = {"files": "the clips' files", "codec": "the codec", "settings": "settings of encode"}
SAMPLES_CHECKED = 2000
_KINDS = (
    "a manifest of training rows (JSONL), a folder of an encoded set, a folder of clip.mp4 with clip.txt, or "
    "a table of clips (CSV)"
)


@dataclass(frozen=True)
class FinetuneSets:
    """places: set -> folder; base: weights of the base's sets; inputs: path -> what was read, for lineage."""

    places: Mapping[str, str]
    base: Mapping[str, float]
    given: Path
    speech: bool


def prepared_sets(
    clips: Path, config: FinetuneConfig, encode: EncodeConfig, sizes: GenerateConfig, codec: Path, to: Path
) -> tuple[Path, bool]:
    """Folder of the encoded clips, and whether some have speech.

    A manifest or plain set is checked and encoded below `to`, or found there. Prints notices. Raises
    ValueError, FileNotFoundError or OSError in one line.
    """
    if is_file(clips / MANIFEST):
        folder = clips
    else:
        manifest, fitted = _manifest_of(clips, encode, sizes, to)
        rows = _rows_of(manifest, fitted.max_bad_fraction)
        if config.sound.required:
            check_trains_audio(config, any(parse(row.text).spans for row in rows), clips)
            _say(of_rows(str(clips), rows, config.sound).check(config.sound))
        folder = _encoded(manifest, rows, fitted, codec, to)
    store = LatentStore(folder)
    samples = [store[index] for index in spread(range(len(store)), SAMPLES_CHECKED)]
    speech = any(len(sample.speaker_positions) for sample in samples)
    if config.sound.required:
        check_trains_audio(config, speech, clips)
        _say(of_samples(str(folder), samples).check(config.sound))
    return folder, speech


def check_trains_audio(config: FinetuneConfig, speech: bool, clips: Path) -> None:
    """Raises ValueError where clips have speech and no sound would be trained by tasks, weight or rate."""
    if speech and not config.trains_audio:
        raise ValueError(
            f"{clips}: its clips have speech, but no sound would be trained on (finetune.tasks "
            f"{dict(config.tasks)}, objective.audio_weight {config.objective.audio_weight:g}, lr_scale "
            f"{vars(config.lr_scale)}); raise them, or set finetune.sound.required=false"
        )


def base_sets(
    config: FinetuneConfig, pretraining: PretrainConfig, layout: Layout
) -> tuple[dict[str, float], dict[str, Path]]:
    """Weights and folders of the base's sets, and of `validation` where there is one.

    Raises FileNotFoundError where data of the base are asked for and not there.
    """
    weights: dict[str, float] = {}
    if config.base:
        given = place(config.base)
        folders = [given] if is_file(given / MANIFEST) else _sets_in(given)
        root = given.parent if is_file(given / MANIFEST) else given
        names = [BASE] if len(folders) == 1 else [f"{BASE}_{folder.name}" for folder in folders]
        places = dict(zip(names, folders, strict=True))
        weights = dict.fromkeys(names, 1.0)
    else:
        root = place(pretraining.latents) if pretraining.latents else layout.latents
        last = list(pretraining.stages.values())[-1]
        weights = {f"{BASE}_{name}": weight for name, weight in last.sets.items() if weight > 0}
        places = {name: root / name.removeprefix(f"{BASE}_") for name in weights}
    if not config.base_share:
        weights, places = {}, {}
    for folder in places.values() or ([root] if config.base_share else []):
        if not is_file(folder / MANIFEST):
            raise FileNotFoundError(
                f"{folder}: no encoded set of the model's own data, of which finetune.base_share "
                f"{config.base_share:g} of the steps should be; set finetune.base to one, or "
                "finetune.base_share=0 to train on the clips alone"
            )
    validation = place(config.validation) if config.validation else root / VALIDATION
    if config.validation and not is_file(validation / MANIFEST):
        raise FileNotFoundError(f"{validation}: no encoded set; give finetune.validation a folder of one")
    return weights, places | ({VALIDATION: validation} if is_file(validation / MANIFEST) else {})


def _sets_in(folder: Path) -> list[Path]:
    found = [path for path in list_folder(folder) if is_file(path / MANIFEST) and path.name != VALIDATION]
    return sorted(found) or [folder]


def _manifest_of(
    clips: Path, encode: EncodeConfig, sizes: GenerateConfig, to: Path
) -> tuple[Path, EncodeConfig]:
    """The manifest of a set that is not encoded yet, and how it is encoded: plain clips are fitted to the
    sizes of `generate` where the recipe has no buckets."""
    from pretrain.data.plain import is_plain, plain_rows

    if is_remote(clips) or (clips.is_file() and not is_plain(clips)):
        return clips, encode
    if not clips.exists():
        raise FileNotFoundError(f"{clips}: no such file or folder; give --clips {_KINDS}")
    if not is_plain(clips):
        raise ValueError(f"{clips}: holds no clips that are known; give --clips {_KINDS}")
    rows = plain_rows(clips)
    digest = stable_hash([row.to_json(Path("/")) for row in rows])
    manifest = to / "rows" / f"{digest:016x}.jsonl"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(manifest, rows)
    if not encode.buckets.frames:
        frames = tuple(range(1 + VIDEO_FRAMES_PER_LATENT, sizes.num_frames + 1, VIDEO_FRAMES_PER_LATENT))
        size = encode.buckets.sizes or (f"{sizes.height}x{sizes.width}",)
        upscale = max(encode.buckets.max_upscale, 2.0)
        encode = dataclasses.replace(
            encode, buckets=BucketConfig(sizes=size, frames=frames, max_upscale=upscale)
        )
    return manifest, encode


def _rows_of(manifest: Path, max_bad_fraction: float) -> list[ManifestRow]:
    with local_file(manifest) as local:
        units = split(local, 1 << 40, manifest.parent)
        results = list(units.rows(0))
    rows = [row for row in results if isinstance(row, ManifestRow)]
    rejected = [error for error in results if isinstance(error, FieldError)]
    check_rejected(manifest, rejected, len(results), max_bad_fraction)
    return rows


def _encoded(
    manifest: Path, rows: Sequence[ManifestRow], config: EncodeConfig, codec: Path, to: Path
) -> Path:
    """The encoded set below `to`, in a folder of its rows, their files, codec and settings; resumed if
    interrupted. Says whether it was there."""
    counting: dict[str, Any] = {**to_json(config), "max_bad_fraction": None, "num_readers": None}
    with local_file(manifest) as local:
        made_of = {
            "rows": sha256_of(local),
            "files": media_digest(files_of(rows, manifest.parent)),
            "codec": sha256_of(codec / "config.json"),
            "settings": f"{stable_hash(counting):016x}",
        }
    folder = to / f"{stable_hash(*made_of.values()):016x}"
    if is_file(folder / CLIPS / MANIFEST):
        print(f"{folder / CLIPS}: encoded before; neither the clips' files nor their rows have changed since")
    else:
        print(f"encoding {manifest} into {folder / CLIPS}{_unlike(to, folder, made_of)}")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MADE_OF, made_of)
        sets = (SetJob(name=CLIPS, manifest=str(manifest)),)
        job = EncodeJob(config=config, sets=sets, codec=str(codec), to=str(folder))
        content = encode_places(job, to / ".encoding", 1)[CLIPS]
        if content["num_rejected"]:
            print(f"{content['num_rejected']} rows are left out; the first: {content['rejected'][0]}")
    return folder / CLIPS


def _unlike(to: Path, folder: Path, made_of: Mapping[str, str]) -> str:
    """What is another than in the set of these rows that is there, as part of a line; "" = there is none."""
    for other in sorted(to.glob(f"*/{MADE_OF}")):
        before = read_json(other, "remove its folder")
        if other.parent != folder and before.get("rows") == made_of["rows"]:
            changed = [_CALLED[name] for name in made_of if before.get(name) != made_of[name]]
            return f", anew: {' and '.join(changed)} changed since {other.parent.name} was encoded"
    return ""


def _say(notice: str) -> None:
    if notice:
        print(notice)
