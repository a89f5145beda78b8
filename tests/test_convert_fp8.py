"""Published checkpoints in fp8: the weights they stand for, however their scales are spelled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from convert_cases import TINY, flavor_of, nava_tensors, read_all, write_checkpoint
from torch import Tensor

from pretrain.convert.fp8 import Fp8Reader
from pretrain.convert.importing import ImportConfig, plan_import, run_import
from pretrain.model.checkpoint import load_model
from pretrain.model.shards import ShardReader

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def named(key: str, spelling: str) -> str:
    module, _, leaf = key.rpartition(".")
    return f"{module}.{spelling.format(leaf)}"


def in_fp8(
    tensors: dict[str, Tensor], spelling: str = "", rows: bool = False, dtype: torch.dtype = E4M3
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the file holds, and the weights that it stands for; vectors stay as they are."""
    held, meant = {}, {}
    for key, value in tensors.items():
        if value.ndim < 2:
            held[key] = meant[key] = value
            continue
        flat = value.flatten(1)
        scale = (flat.abs().amax(1) if rows else flat.abs().amax()) / 448 if spelling else torch.tensor(1.0)
        shaped = scale.reshape(-1, *[1] * (value.ndim - 1))
        held[key] = (value / shaped).to(dtype)
        meant[key] = held[key].float() * shaped
        if spelling:
            held[named(key, spelling)] = scale
    return held, meant


def planned(tmp_path: Path, tensors: dict[str, Tensor]):
    path = write_checkpoint(tmp_path / "source", tensors)
    with flavor_of(TINY) as name:
        return plan_import(ImportConfig(kind="nava", flavor=name), path)


@pytest.mark.parametrize(
    ("spelling", "rows", "dtype"),
    [
        ("", False, E4M3),
        ("", False, E5M2),
        ("scale_{}", False, E4M3),
        ("{}_scale", False, E4M3),
        ("{}_scale", True, E4M3),
    ],
)
def test_every_weight_is_the_product_of_its_bytes_and_its_scale(tmp_path, spelling, rows, dtype):
    plain = nava_tensors(TINY)
    held, meant = in_fp8(plain, spelling, rows, dtype)
    held |= {"scaled_fp8": torch.zeros(2).to(dtype), "blocks.0.input_scale": torch.tensor(0.5)}
    reader = Fp8Reader(write_checkpoint(tmp_path / "s", held))
    assert set(reader.keys()) == set(plain)
    for key, wanted in meant.items():
        assert reader.dtype(key) == torch.float32 and reader.shape(key) == wanted.shape
        assert torch.equal(reader.tensor(key), wanted), key


def test_an_import_is_that_of_the_weights_it_stands_for_and_says_so(tmp_path):
    held, meant = in_fp8(nava_tensors(TINY), "scale_{}")
    with flavor_of(TINY) as name:
        config = ImportConfig(kind="nava", flavor=name)
        for place, tensors in (("fp8", held), ("fp32", meant)):
            source = write_checkpoint(tmp_path / f"{place}-source", tensors)
            facts = run_import(plan_import(config, source), tmp_path / place)
            if place == "fp8":
                matrices = sum(value.ndim > 1 for value in meant.values())
                assert facts["source"]["fp8"] == {"weights": matrices, "scaled": matrices}
            else:
                assert "fp8" not in facts["source"]
        ours, wanted = (read_all(tmp_path / place) for place in ("fp8", "fp32"))
        assert all(torch.equal(ours[key], wanted[key]) for key in wanted)
        load_model(tmp_path / "fp8")


def test_a_checkpoint_without_fp8_is_read_as_ever(tmp_path):
    path = write_checkpoint(tmp_path / "s", {key: v.bfloat16() for key, v in nava_tensors(TINY).items()})
    ours, plain = Fp8Reader(path), ShardReader(path)
    assert list(ours.keys()) == list(plain.keys()) and ours.shapes() == plain.shapes()
    assert all(torch.equal(ours.tensor(key), plain.tensor(key)) for key in plain.keys())  # noqa: SIM118


def test_scales_that_are_not_understood_are_refused(tmp_path):
    held, _ = in_fp8(nava_tensors(TINY), "scale_{}")
    key = next(key for key, value in held.items() if value.dtype == E4M3 and value.ndim == 2)
    rows = held[key].shape[0]
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({**held, named(key, "{}_scale"): torch.tensor(1.0)}, "has two scales"),
        ({**held, named(key, "scale_{}"): torch.ones(rows + 1)}, "one number, or one for each row"),
        (
            {**held, named(key, "scale_{}"): torch.ones(1, dtype=torch.int8)},
            "one number, or one for each row",
        ),
        ({**held, named(key, "{}_scale_inv"): torch.ones(1, 1)}, "extra .*_scale_inv"),
    ]
    for number, (tensors, said) in enumerate(cases):
        with pytest.raises(ValueError, match=said) as error:
            planned(tmp_path / str(number), tensors)
        assert "\n" not in str(error.value)


def test_readers_of_other_files_still_refuse_fp8(tmp_path):
    """A scale beside it would be lost there."""
    path = write_checkpoint(tmp_path / "s", {"a.weight": torch.ones(2, 2).to(E4M3)})
    with pytest.raises(ValueError, match="'F8_E4M3', not one of"):
        ShardReader(path)
