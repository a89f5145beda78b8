"""Published layouts in and out: bit for bit, every key accounted for, refusals in one line, nothing
half-written."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_cases import TINY, flavor_of, imported, nava_tensors, read_all, sizes_for, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from nava_rederived import layout_shapes
from object_store import BUCKET, object_store
from torch import Tensor

from pretrain.convert.account import account, sizes_of, their_shapes
from pretrain.convert.dcp import write_dcp
from pretrain.convert.exporting import ExportConfig, run_export
from pretrain.convert.importing import ImportConfig, plan_import, run_import
from pretrain.convert.layouts import rules
from pretrain.model.args import ModelArgs
from pretrain.model.checkpoint import load_model, read_model_folder
from pretrain.model.flavors import build_model, flavor
from pretrain.model.shards import ShardReader
from pretrain.storage import place

SMALL = replace(
    TINY,
    width=12,
    num_heads=2,
    ffn_width=8,
    text_width=6,
    audio_embed_hidden=8,
    audio_embed_kernel=3,
    time_frequencies=4,
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def layout_tensors(layout: Any, args: ModelArgs, suffix: Any = "leaf") -> dict[str, Tensor]:
    sizes = sizes_of(args)
    shapes = their_shapes(rules(layout, args, sizes.shapes, suffix), sizes)
    return {
        key: torch.randn(shape, generator=torch.Generator().manual_seed(index))
        for index, (key, shape) in enumerate(shapes.items())
    }


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


@settings(max_examples=12, deadline=None)
@given(
    layout=st.sampled_from(["nava", "wan", "wan_diffusers"]),
    suffix=st.sampled_from(["leaf", "module"]),
    double=st.integers(0, 3),
    single=st.integers(0, 2),
    split=st.booleans(),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=5),
    stored=st.sampled_from(["source", "fp32"]),
    audio=st.sampled_from(["fresh", "copy"]),
    shards=st.integers(1, 3),
)
def test_export_of_import_is_the_source_bit_for_bit(
    layout, suffix, double, single, split, dtypes, stored, audio, shards
) -> None:
    if double + single == 0:
        double = 1
    args = replace(SMALL, num_alignment_blocks=double, num_fusion_blocks=single, split_ffn_and_norms=split)
    tensors = layout_tensors(layout, args, suffix if layout == "nava" else "leaf")
    tensors = {
        key: value.to(dtypes[index % len(dtypes)]) for index, (key, value) in enumerate(tensors.items())
    }
    with tempfile.TemporaryDirectory() as name, flavor_of(args) as named:
        folder = Path(name)
        path = write_checkpoint(folder / "source", tensors, shards)
        kind: Any = "nava" if layout == "nava" else "wan2.2"
        config = ImportConfig(
            kind=kind, flavor=named, stored_as=stored, audio_from=audio if kind == "wan2.2" else "fresh"
        )
        run_import(plan_import(config, path), folder / "model", max_bytes=20_000)
        run_export(ExportConfig(layout=layout, max_bytes=15_000), folder / "model", folder / "back")
        assert same_bits(read_all(folder / "back"), tensors)
        held = {value.dtype for value in read_all(folder / "model").values()}
        assert stored == "source" or held == {torch.float32}


@pytest.mark.parametrize("layout", ["nava", "wan", "wan_diffusers"])
def test_one_missing_one_extra_and_one_misshapen_key_are_named_together(layout: Any, tmp_path) -> None:
    tensors = layout_tensors(layout, SMALL)
    missing, misshapen = sorted(tensors)[3], sorted(tensors)[-1]
    broken = {key: value for key, value in tensors.items() if key != missing}
    broken |= {misshapen: torch.zeros(3, 1), next(iter(tensors)) + "er": torch.zeros(2)}
    path = write_checkpoint(tmp_path / "source", broken)
    with flavor_of(SMALL) as name, pytest.raises(ValueError) as error:
        plan_import(ImportConfig(kind="nava" if layout == "nava" else "wan2.2", flavor=name), path)
    said = str(error.value)
    assert (
        f"missing {missing} (of 1)" in said and f"misshapen {misshapen} (3, 1)" in said and "\n" not in said
    )
    assert f"extra {next(iter(tensors))}er (of 1)" in said


def test_every_key_is_accounted_for(tmp_path) -> None:
    tensors = layout_tensors("wan", SMALL) | {"freqs": torch.zeros(4)}
    with flavor_of(SMALL) as name:
        told = plan_import(
            ImportConfig(kind="wan2.2", flavor=name), write_checkpoint(tmp_path / "s", tensors)
        ).account
    rows = told.rows()
    assert {row["key"] for row in rows if row["state"] != "ignored"} == set(sizes_of(SMALL).shapes)
    used = {source for row in rows for source in row["from"]}  # type: ignore[attr-defined]
    assert used | set(told.ignored) == set(tensors) and told.ignored == {
        "freqs": "rotary angles, computed from the sizes"
    }
    assert all(row["how"] for row in rows if row["state"] in ("fresh", "ignored"))
    assert (
        told.counts()["parameters"] == told.counts()["parameters_given"] + told.counts()["parameters_fresh"]
    )


def full(layout: Any, name: str) -> dict[str, torch.Size]:
    sizes = sizes_of(flavor(name))
    return their_shapes(rules(layout, flavor(name), sizes.shapes), sizes)


@pytest.mark.parametrize(
    ("name", "params"), [("nava_6b_published", 6_296_995_520), ("nava_7b_split_published", 7_178_034_880)]
)
def test_full_size_keys_and_shapes_are_those_of_the_rederivation(name: str, params: int) -> None:
    args = flavor(name)
    expected = {key: torch.Size(shape) for key, shape in layout_shapes(replace(sizes_for(args))).items()}
    found = full("nava", name)
    assert found == expected and sum(shape.numel() for shape in found.values()) == params


def test_full_size_wan_is_diffusers_model_on_the_meta_device() -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from pretrain.convert.exporting import diffusers_config

    args = flavor("nava_6b_published")
    with torch.device("meta"):
        model: Any = WanTransformer3DModel.from_config(diffusers_config(args))
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert full("wan_diffusers", "nava_6b_published") == expected
    assert sum(shape.numel() for shape in expected.values()) == 4_999_787_712
    sizes = sizes_of(args)
    counts = account(rules("wan_diffusers", args, sizes.shapes), sizes, expected, "meta").counts()
    assert (
        counts["parameters_given"] == 4_999_787_712
        and counts["parameters"] == 6_296_995_520
        and counts["ignored"] == 0
    )


def test_the_average_is_the_model_and_lies_on_disk_once(tmp_path) -> None:
    model = imported(write_checkpoint(tmp_path / "s", nava_tensors()), tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    other = load_model(tmp_path / "m", "model")[0].state_dict()
    assert all(torch.equal(value, other[key]) for key, value in model.state_dict().items())
    described = read_model_folder(tmp_path / "m")
    assert (
        described.args == TINY and described.args.attend_text_padding and not described.args.timbre_keeps_text
    )
    (digest,) = described.facts["source"]["sha256"].values()
    import hashlib

    assert digest == hashlib.sha256((tmp_path / "s" / "weights.safetensors").read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_dcp_fills_a_model(tmp_path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    model = imported(write_checkpoint(tmp_path / "s", nava_tensors()), tmp_path / "m")
    folder = write_dcp(tmp_path / "m")
    fresh = build_model(TINY)
    state = fresh.state_dict()
    load(state, checkpoint_id=folder, no_dist=True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def damaged(folder: Path, damage: str) -> Path:
    path = write_checkpoint(folder, nava_tensors(SMALL), shards=3)
    shard, index = folder / "weights-00002-of-00003.safetensors", folder / "weights.safetensors.index.json"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "missing shard":
        shard.unlink()
    elif damage == "no index":
        index.unlink()
    elif damage == "index is no JSON":
        index.write_text("{")
    elif damage == "index names a folder above":
        index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    elif damage == "index puts a key elsewhere":
        content = json.loads(index.read_text())
        key = next(iter(content["weight_map"]))
        content["weight_map"][key] = shard.name
        index.write_text(json.dumps(content))
    elif damage == "index lacks a key":
        content = json.loads(index.read_text())
        del content["weight_map"]["backbone.head.modulation"]
        index.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "00002-of-00003.safetensors: not a whole safetensors file"),
        ("missing shard", "00002-of-00003.safetensors: missing"),
        ("no index", "shards without their index"),
        ("index is no JSON", "not an index"),
        ("index names a folder above", "not an index"),
        ("index puts a key elsewhere", "which does not hold it"),
        ("index lacks a key", "which the index does not name"),
    ],
)
def test_damaged_checkpoints_are_refused_in_one_line(damage: str, said: str, tmp_path) -> None:
    with flavor_of(SMALL) as name, pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        plan_import(ImportConfig(kind="nava", flavor=name), damaged(tmp_path / "s", damage))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_other_flavors_layouts_and_types_are_refused_in_one_line(tmp_path) -> None:
    path = write_checkpoint(tmp_path / "s", nava_tensors(SMALL))
    wan = write_checkpoint(tmp_path / "w", layout_tensors("wan", SMALL))
    quantised = write_checkpoint(
        tmp_path / "q", {key: value.to(torch.int8) for key, value in nava_tensors(SMALL).items()}
    )
    cases = [
        ({"kind": "nava", "flavor": "debug_published"}, path, "another flavor"),
        (
            {"kind": "nava", "flavor": "nava_6b"},
            path,
            "attend_text_padding is False.*--flavor nava_6b_published",
        ),
        ({"kind": "wan2.2", "flavor": "debug_published"}, path, "use `nava import nava`"),
        ({"kind": "nava", "flavor": "debug_published"}, wan, r"use `nava import wan2\.2`"),
        ({"kind": "nava", "flavor": "debug_published"}, quantised, "not another quantised one"),
        (
            {"kind": "nava", "flavor": "debug_published"},
            tmp_path / "nowhere",
            "no .safetensors file or index here",
        ),
    ]
    for given_config, source, said in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
            plan_import(ImportConfig(**given_config), source)
        assert "\n" not in str(error.value)


def test_a_failure_midway_leaves_nothing(tmp_path, monkeypatch) -> None:
    path, reads = write_checkpoint(tmp_path / "s", nava_tensors(SMALL)), []
    whole = ShardReader.tensor

    def failing(self, key):
        reads.append(key)
        if len(reads) > 20:
            raise OSError(5, "Input/output error", str(self.path))
        return whole(self, key)

    monkeypatch.setattr(ShardReader, "tensor", failing)
    with flavor_of(SMALL) as name, pytest.raises(OSError, match="Input/output error"):
        run_import(plan_import(ImportConfig(kind="nava", flavor=name), path), tmp_path / "m", max_bytes=2_000)
    assert not (tmp_path / "m").exists()


def test_other_work_is_not_replaced(tmp_path) -> None:
    path = write_checkpoint(tmp_path / "s", nava_tensors())
    imported(path, tmp_path / "m")
    imported(path, tmp_path / "m")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not an earlier import"):
        imported(path, tmp_path / "full")
    with pytest.raises(ValueError, match="not empty; give another folder"):
        run_export(ExportConfig(layout="nava"), tmp_path / "m", tmp_path / "full")
    assert [item.name for item in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_an_exported_file_replaces_and_removes_nothing(tmp_path) -> None:
    """Not a checkpoint whose name begins alike, not shards of the same name, and not the model it comes
    from."""
    path = write_checkpoint(tmp_path / "s", nava_tensors(SMALL))
    with flavor_of(SMALL) as name:
        run_import(
            plan_import(ImportConfig(kind="nava", flavor=name), path), tmp_path / "m", max_bytes=20_000
        )
    before = {item.name: item.read_bytes() for item in (tmp_path / "m").iterdir()}
    with pytest.raises(ValueError, match="exists; remove it or give another file"):
        run_export(ExportConfig(layout="nava"), tmp_path / "m", tmp_path / "m" / "model.safetensors")
    assert {item.name: item.read_bytes() for item in (tmp_path / "m").iterdir()} == before
    (tmp_path / "nava-tuned.safetensors").write_bytes(b"mine")
    run_export(ExportConfig(layout="nava"), tmp_path / "m", tmp_path / "nava.safetensors")
    assert (tmp_path / "nava-tuned.safetensors").read_bytes() == b"mine"


def test_a_killed_import_or_export_can_simply_be_repeated(tmp_path) -> None:
    path = write_checkpoint(tmp_path / "s", nava_tensors())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("m", "back"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f".model-00001-of-00002.safetensors.{dead.pid}.tmp").write_bytes(b"half")
    imported(path, tmp_path / "m")
    run_export(ExportConfig(layout="nava"), tmp_path / "m", tmp_path / "back")
    assert not [
        item for name in ("m", "back") for item in (tmp_path / name).iterdir() if item.name.endswith(".tmp")
    ]
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / f".NAVA.safetensors.{os.getpid()}.tmp").write_bytes(b"of a process that runs")
    with pytest.raises(ValueError, match="not empty"):
        run_export(ExportConfig(layout="nava"), tmp_path / "m", tmp_path / "busy")


CHANGES: dict[str, Any] = {
    "no text": b"\xff\xfe",
    "a list": [],
    "null": None,
    "deep": b"[" * 100_000,
    "args": {"args": []},
    "heads": {"args": {"num_heads": 0}},
    "flavor": {"flavor": 3},
    "source": {"source": "x"},
    "empty source": {"source": {"layout": "nava"}},
    "a function for a dtype": {
        "source": {"layout": "nava", "audio_suffix": "leaf", "dtype": "load", "other_dtypes": {}}
    },
    "suffix": {"source": {"layout": "nava", "audio_suffix": "x", "dtype": "float32", "other_dtypes": {}}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_config_of_other_types_is_refused_in_one_line_before_anything_is_written(change, tmp_path) -> None:
    imported(write_checkpoint(tmp_path / "s", nava_tensors()), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    said = {**json.loads(path.read_text()), **change} if isinstance(change, dict) else change
    path.write_bytes(said if isinstance(said, bytes) else json.dumps(said).encode())
    with pytest.raises(ValueError, match=r"m/config\.json") as error:
        run_export(ExportConfig(layout="nava"), tmp_path / "m", tmp_path / "back")
    assert "\n" not in str(error.value) and not (tmp_path / "back").exists()


@pytest.mark.parametrize("store", ["memory", "s3"])
def test_by_url_in_both_directions(store: str, tmp_path) -> None:
    tensors = nava_tensors(SMALL)
    with flavor_of(SMALL) as name, object_store() if store == "s3" else nullcontext():
        root = place("memory://convert" if store == "memory" else f"s3://{BUCKET}/convert")
        for file in write_checkpoint(tmp_path / "s", tensors, shards=3).iterdir():
            (root / "source" / file.name).write_bytes(file.read_bytes())
        run_import(
            plan_import(ImportConfig(kind="nava", flavor=name), root / "source"),
            root / "model",
            max_bytes=20_000,
        )
        run_export(ExportConfig(layout="nava", max_bytes=15_000), root / "model", root / "back")
        back = ShardReader(root / "back")
        assert len(back.files) > 1 and same_bits({key: back.tensor(key) for key in back.keys()}, tensors)  # noqa: SIM118
        assert load_model(root / "model")[1].facts["stage"] == "import"
