"""Cases of clips: their scores by `nava score` and by the reward service, their latents by `nava encode`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from case_world import BASE, Line, World, near, scored, short, value_of

SYNC_TOLERANCE, LEVEL_TOLERANCE_DB = 0.03, 1.0
SYNC = {  # of the notes; the twin with the true timeline where there is one
    "rotation__base.mp4": (1.199, ""),
    "rotation__rot90.mp4": (1.199, "rotation__base.mp4"),
    "rotation__rot180.mp4": (1.199, "rotation__base.mp4"),
    "audio_gap__gap200.mp4": (1.199, "audio_gap__ref_gap200.mp4"),
    "audio_gap__gap200.mkv": (1.199, "audio_gap__ref_gap200.mp4"),
    "audio_gap__gap200.webm": (1.199, "audio_gap__ref_gap200.mp4"),
    "cover_art_first__cover_first.mp4": (1.199, "rotation__base.mp4"),
    "default_audio_track__two.mkv": (1.19, ""),
    "edit_list_cut__cut_copy.mp4": (1.171, "edit_list_cut__ref_cut.mp4"),
    "latin1_title__latin1_title.mp4": (1.199, "rotation__base.mp4"),
    "pcm_u8__a_u8.mov": (1.199, ""),
    "surround_level__a51_center.mp4": (1.199, ""),
    "antiphase__a_antiphase.mp4": (1.199, ""),
    "vfr__vfr.mp4": (1.159, "vfr__ref_vfr_cfr.mp4"),
    "vfr__vfr_hole.mp4": (1.057, "vfr__ref_hole_cfr.mp4"),
    "vfr__vfr24.mp4": (1.183, "vfr__ref_vfr24.mp4"),
}
LOUDNESS_DBFS = -21.1
IDENTITY, IDENTITY_TOLERANCE = 0.968, 0.02
IMAGES = ("jpg_exif3.jpg", "jpg_exif6.jpg", "png_exif6.png", "png_rgb.png")
ENCODED_ERROR = 0.15  # relative, of latents: the codec's own noise is about 0.06


def clip_lines(world: World) -> Iterator[Line]:
    """Scores of all clips in one run of `nava score`, of the same in the service, and latents."""
    rewards = ["identity_colour_edge", "snr_estimate_db", "wer_pocketsphinx"]
    settings = []
    if world.syncnet is not None:
        rewards.append("sync_mini")
        settings.append(f"sync_mini.model={world.syncnet}")
    rows = [world.base(file, video=file) for file in dict.fromkeys((*SYNC, *_twins()))]
    found = scored(world, rows, rewards, settings)
    if world.syncnet is not None:
        yield from _sync_lines(found)
    yield from _sound_lines(found)
    yield from _identity_lines(world)
    if world.syncnet is not None:
        yield from service_lines(world, world.syncnet)
    if world.codec is not None:
        yield from latent_lines(world, world.codec)


def _twins() -> list[str]:
    return [twin for _, twin in SYNC.values() if twin]


def _sync_lines(found: dict[str, dict[str, Any]]) -> Iterator[Line]:
    for file, (right, _) in SYNC.items():
        yield near(file, "score", found[file], "sync_mini", right, SYNC_TOLERANCE)
        parts = found[file]["scores"].get("sync_mini", {}).get("parts", {})
        offset = parts.get("offset_frames", parts.get("offset"))
        yield Line(file, "score", f"offset {offset}", "0", offset == 0)


def _sound_lines(found: dict[str, dict[str, Any]]) -> Iterator[Line]:
    for file in ("pcm_u8__a_u8.mov", "surround_level__a51_center.mp4", "antiphase__a_antiphase.mp4"):
        level = found[file]["guardrails"].get("loudness_dbfs")
        right = f"{LOUDNESS_DBFS} ± {LEVEL_TOLERANCE_DB:g}"
        ok = level is not None and abs(level - LOUDNESS_DBFS) <= LEVEL_TOLERANCE_DB
        shown = "none" if level is None else f"{level:.1f}"
        yield Line(file, "score", f"loudness_dbfs {shown}", right, ok)
    for file in ("default_audio_track__two.mkv", BASE):
        yield near(file, "score", found[file], "wer_pocketsphinx", 0.0, 1e-6)


def _identity_lines(world: World) -> Iterator[Line]:
    rows = [world.base(image, image_path=f"exif_image__{image}") for image in IMAGES]
    rows += [
        world.base(image, image_path=image)
        for image in (
            "huge_image__huge.png",
            "truncated_jpeg__trunc.jpg",
            "transparent_png__png_rgba_cut.png",
            "transparent_png__png_palette_trns.png",
        )
    ]
    found = scored(world, rows, ["identity_colour_edge"])
    for image in IMAGES:
        file = f"exif_image__{image}"
        yield near(file, "score", found[image], "identity_colour_edge", IDENTITY, IDENTITY_TOLERANCE)
    for image in ("huge_image__huge.png", "truncated_jpeg__trunc.jpg"):
        value, reason = value_of(found[image], "identity_colour_edge")
        ok = value is None and image in reason and "the run ended" not in reason
        yield Line(image, "score", f"{value} ({short(reason)})", "no value, this row's reason", ok)
    yield from _transparent_lines(world, found)


def _transparent_lines(world: World, found: dict[str, dict[str, Any]]) -> Iterator[Line]:
    from pretrain.media.stills import read_image

    for image in ("transparent_png__png_rgba_cut.png", "transparent_png__png_palette_trns.png"):
        picture = read_image(world.cases / image).astype(int)
        hidden = (picture[..., 0] > 200) & (picture[..., 1] < 60) & (picture[..., 2] > 200)
        yield Line(
            image, "reader", f"{hidden.mean():.1%} of it magenta", "0.0%, one colour", not hidden.any()
        )
        value, reason = value_of(found[image], "identity_colour_edge")
        shown = reason if value is None else f"{value:.3f}"
        yield Line(
            image, "score", f"identity_colour_edge {shown}", "above 0.607, or a reason", (value or 1) > 0.61
        )


def service_lines(world: World, syncnet: Path) -> Iterator[Line]:
    """The same clips over HTTP, in this process."""
    from service_world import LocalScoring, service

    from orchestration.service.limits import Limits
    from orchestration.service.schema import ServedReward
    from rewards.catalog import open_rewards

    boxes = world.base(BASE)["meta"]["mouth_boxes"]
    with (
        open_rewards(["sync_mini"], {"sync_mini": {"model": str(syncnet)}}) as rewards,
        service(world.cases, limits=Limits()) as (client, scoring),
    ):
        assert isinstance(scoring, LocalScoring)
        scoring.rewards["sync_mini"] = rewards[0]
        scoring.served = {"sync_mini": ServedReward(name="sync_mini")}
        for file, (right, _) in SYNC.items():
            body = {"clip": file, "rewards": ["sync_mini"], "mouth_boxes": boxes}
            answer = client.post("/v1/score", json=body)
            found = answer.json()
            if answer.status_code != 200:
                said = f"{answer.status_code} {found['reason']}"
                yield Line(file, "serve", said, f"{right}", False)
            else:
                yield near(file, "serve", found, "sync_mini", right, SYNC_TOLERANCE)


def latent_lines(world: World, codec: Path) -> Iterator[Line]:
    """Latents of a clip beside those of its twin, by `nava encode`'s code."""
    from pretrain.data.encoding.config import EncodeConfig
    from pretrain.data.encoding.encode_ranks import EncodeJob, SetJob, encode_rank
    from pretrain.data.stream.store import LatentStore

    files = dict.fromkeys([*SYNC, *_twins()])
    manifest = world.scratch / "encode.jsonl"
    manifest.write_text("".join(json.dumps(_manifest_row(world, file)) + "\n" for file in files))
    config = EncodeConfig(batch_size=1, num_readers=1, max_bad_fraction=0.99)
    sets = (SetJob(name="cases", manifest=str(manifest)),)
    to = world.scratch / "latents"
    encode_rank(EncodeJob(config=config, sets=sets, codec=str(codec), to=str(to)), 0, 1)
    store = LatentStore(to / "cases")
    samples = {store[place].data_id: store[place] for place in range(len(store))}
    for file, (_, twin) in SYNC.items():
        if not twin or file == twin:
            continue
        if file not in samples or twin not in samples:
            yield Line(file, "encode", "rejected", f"as {twin}", False)
            continue
        for stream in ("video", "audio"):
            error = _relative(getattr(samples[file], stream), getattr(samples[twin], stream))
            limit = ENCODED_ERROR if stream == "video" else 0.5
            yield Line(file, "encode", f"{stream} {error:.3f} from {twin}", f"below {limit}", error < limit)


def _manifest_row(world: World, file: str) -> dict[str, Any]:
    from pretrain.media.read import probe

    info, row = probe(world.cases / file), world.base(file, video=file)
    video = {
        "data_path": row["video"],
        "fps": 24.0,
        "duration": info.duration_s or 4.0,
        "image_width": info.width,
        "image_height": info.height,
    }
    return {
        "data_id": file,
        "video_info": [video],
        "text_list": [{"text": row["prompt"].replace("<S>", "").replace("<E>", "")}],
    }


def _relative(ours: Any, twin: Any) -> float:
    if ours is None or twin is None:
        return float("nan")
    left, right = np.asarray(ours), np.asarray(twin)
    both = tuple(slice(0, min(pair)) for pair in zip(left.shape, right.shape, strict=True))
    return float(np.sqrt(np.mean((left[both] - right[both]) ** 2) / np.mean(right[both] ** 2)))
