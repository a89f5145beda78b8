"""A model that a layout's own code would compute otherwise is not written in that layout."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from convert_cases import imported, nava_tensors, write_checkpoint

from pretrain.convert.exporting import ExportConfig, check_expressible, run_export
from pretrain.convert.layouts import LAYOUTS
from pretrain.model.checkpoint import ModelFolder, write_model
from pretrain.model.flavors import FLAVORS, build_model

OF_ALL: dict[str, Any] = {
    "attend_text_padding": {"attend_text_padding": False, "dropped_text_is_zeros": False},
    "gelu": {"gelu": "none"},
    "open_deviation_video": {"open_deviation_video": 0.1},
    "rope_theta": {"rope_theta": 5000.0},
}
OF_NAVA: dict[str, Any] = {
    "dropped_text_is_zeros": {"dropped_text_is_zeros": False},
    "timbre_keeps_text": {"timbre_keeps_text": True},
    "rate_aware_rope": {"rate_aware_rope": False},
    "open_deviation_audio": {"open_deviation_audio": 0.3},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    imported(write_checkpoint(folder / "s", nava_tensors()), folder / "m")
    return folder / "m"


@pytest.mark.parametrize("field", [*OF_ALL, *OF_NAVA])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_layout_computes_otherwise_is_refused(layout: Any, field: str, model, tmp_path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["args"] |= OF_ALL.get(field) or OF_NAVA[field]
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in model.iterdir():
        (changed / file.name).hardlink_to(file)
    (changed / "config.json").unlink()
    (changed / "config.json").write_text(json.dumps(config))
    if field in OF_NAVA and layout != "nava":  # the audio side and the timbre tokens are not part of it
        assert run_export(ExportConfig(layout=layout), changed, tmp_path / "to")["tensors"]
        return
    with pytest.raises(
        ValueError, match=f"changed: {field} is .*, the code .* `nava export diffusers`"
    ) as said:
        run_export(ExportConfig(layout=layout), changed, tmp_path / "to")
    assert "\n" not in str(said.value) and not (tmp_path / "to").exists()


def test_the_refusal_names_the_flavor_to_train_with(tmp_path) -> None:
    """`debug` stands for nava_6b and nava_7b_split, which differ from their published twins alike."""
    args = replace(FLAVORS["debug"], timbre_keeps_text=False)
    write_model(tmp_path / "m", "debug", args, {"model": build_model(args).state_dict()}, {})
    with pytest.raises(ValueError, match=r"train with pretrain\.flavor=debug_published"):
        run_export(ExportConfig(layout="nava", weights="model"), tmp_path / "m", tmp_path / "to")


@pytest.mark.parametrize("name", [name for name in FLAVORS if name.endswith("_published")])
def test_published_flavors_have_every_layout(name: str, tmp_path) -> None:
    for layout in LAYOUTS:
        check_expressible(ModelFolder(name, FLAVORS[name], {}), layout, tmp_path)
