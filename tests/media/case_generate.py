"""Cases of first frames: clips of `nava generate`, and their identity scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case_world import Line, World, last_line, nava, said_of, short, value_of

UPRIGHT = "exif_image__png_rgb.png"
TURNED = ("exif_image__jpg_exif6.jpg", "exif_image__png_exif6.png")  # the same picture, turned by its EXIF
TOLERANCE = 0.02
TRUNCATED = "truncated_jpeg__trunc.jpg"


def generated_lines(world: World) -> Iterator[Line]:
    """`nava generate` from upright and turned first frames, scored by its index; nothing without a model."""
    if world.model is None or world.codec is None:
        return
    upright = math.nan
    for image in (UPRIGHT, *TURNED):
        to = world.scratch / f"generated_{image}"
        done = generate(world, image, to)
        if done.returncode:
            yield Line(image, "generate", short(last_line(done)), "a clip", False)
            continue
        row = json.loads((to / "index.jsonl").read_text().splitlines()[0])
        has = bool(row.get("image_path"))
        yield Line("generated_first_frame.md", "generate", f"image_path in the index: {has}", "True", has)
        value, reason = value_of(_scored(world, to), "identity_colour_edge")
        shown = reason if value is None else f"{value:.3f}"
        upright = value if image == UPRIGHT and value is not None else upright
        ok = value is not None and abs(value - upright) <= TOLERANCE
        right = "a value" if image == UPRIGHT else f"{upright:.3f} ± {TOLERANCE}, as from the upright picture"
        yield Line(image, "generate", f"identity_colour_edge {shown}", right, ok)
    done = generate(world, TRUNCATED, world.scratch / "none")
    ok = done.returncode == 2 and TRUNCATED in said_of(done) and "Traceback" not in said_of(done)
    measured = f"exit {done.returncode}: {short(last_line(done))}"
    yield Line(TRUNCATED, "generate", measured, "refused by its name", ok)


def generate(world: World, image: str, to: Path) -> Any:
    row = world.base("g", image_path=image)
    prompts = world.scratch / f"{image}.prompts.jsonl"
    prompts.write_text(json.dumps({key: row[key] for key in ("data_id", "prompt", "image_path")}) + "\n")
    assert world.model is not None and world.codec is not None
    return nava("generate", prompts, "--to", to, "--model", world.model, "--codec", world.codec)


def _scored(world: World, folder: Path) -> dict[str, Any]:
    out = world.scratch / f"{folder.name}.scores.jsonl"
    done = nava("score", folder, "--rewards", "identity_colour_edge", "--out", out)
    if done.returncode or not out.is_file():
        return {"ended": last_line(done), "scores": {}}
    return json.loads(out.read_text().splitlines()[0])
