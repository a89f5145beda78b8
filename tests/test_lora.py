import dataclasses
import json
from pathlib import Path

import peft
import pytest
import torch
from model_cases import audio_stream, conditioning, debug_model, present, video_stream
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.adapters import (
    Adapter,
    adapted_model,
    gathered,
    load_adapter,
    merge_adapter,
    read_adapter,
    save_adapter,
)
from finetune.lora import (
    GROUPS,
    LoraConfig,
    adapter_layers,
    adapter_parameters,
    adapter_shapes,
    inject,
    target_names,
)
from pretrain.model.checkpoint import load_model, read_model_folder, write_model
from pretrain.model.flavors import build_model, flavor
from pretrain.sampling import lower_precision

PARADIGMS = ("debug", "debug_dual_tower", "debug_unified")
CONFIG = LoraConfig(rank=4, alpha=8.0, targets=tuple(GROUPS))


def answer(model: nn.Module) -> Tensor:
    velocity = model(video_stream(), audio_stream(), conditioning())
    return torch.cat([present(velocity.video).flatten(), present(velocity.audio).flatten()])


def fill(model: nn.Module, adapter: str = "default", seed: int = 5) -> None:
    """B away from zero, so that the adapter says something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model, adapter).items():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("name", "per_group"),  # counted by hand from the blocks: (self, cross, ffn, heads)
    [
        ("debug", (12, 12, 4, 2)),  # 1 alignment block of two streams and a shared FFN, 1 fusion block
        ("debug_dual_tower", (16, 32, 8, 2)),  # 2 pairs of towers; each looks at the text and at the other
        ("debug_unified", (8, 0, 4, 2)),
        ("mini", (20, 20, 8, 2)),
        ("nava_6b", (160, 160, 60, 2)),
        ("nava_7b_split", (160, 160, 80, 2)),
    ],
)
def test_groups_name_every_map_of_the_blocks_once(name, per_group):
    with torch.device("meta"):
        model = build_model(flavor(name))
    for group, count in zip(GROUPS, per_group, strict=True):
        if count:
            assert len(target_names(model, (group,))) == count
        else:
            with pytest.raises(ValueError, match="has no layers of cross_attention"):
                target_names(model, (group,))
    everything = target_names(model, tuple(GROUPS))
    blocks = [module for group in model.block_groups() for module in group.modules()]
    linears = [
        module
        for module in [*blocks, model.head.linear, model.head_audio.linear]
        if isinstance(module, nn.Linear)
    ]
    assert len(set(everything)) == len(everything) == len(linears)
    assert {id(model.get_submodule(layer)) for layer in everything} == {id(linear) for linear in linears}


@pytest.mark.parametrize("name", PARADIGMS)
def test_at_the_start_it_is_the_base_bit_for_bit(name):
    model = debug_model(name=name)
    before, state = answer(model), torch.get_rng_state()
    inject(model, CONFIG)
    assert torch.equal(answer(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    fill(model)
    assert (answer(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("name", PARADIGMS)
def test_every_wrapped_layer_is_heard_and_trained(name, low):
    model = debug_model(name=name)
    inject(lower_precision(model, torch.bfloat16) if low else model, CONFIG)
    fill(model)
    answer(model).square().mean().backward()
    layers = adapter_layers(model)
    assert sorted(layers) == sorted(target_names(debug_model(name=name), CONFIG.targets))
    for name_, parameter in adapter_parameters(model, "default").items():
        gradient = present(parameter.grad)
        assert gradient.dtype == parameter.dtype == torch.float32 and float(gradient.abs().sum()) > 0, name_
    assert {parameter.dtype for parameter in adapter_parameters(model, "old").values()} == {torch.float32}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".default." in name for name in trained) and len(trained) == 2 * len(layers)
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


def test_low_precision_base_at_the_start_is_itself_bit_for_bit():
    model = lower_precision(debug_model(), torch.bfloat16)
    before = answer(model)
    assert torch.equal(answer(inject(model, CONFIG)), before)


def test_first_values_come_from_the_layers_names_alone():
    one, narrow, other = debug_model(), debug_model(seed=4), debug_model()
    inject(one, CONFIG)
    torch.manual_seed(99)
    inject(narrow, dataclasses.replace(CONFIG, targets=("ffn",)))
    inject(other, dataclasses.replace(CONFIG, seed=1))
    mine = adapter_parameters(one, "default")
    for name, value in adapter_parameters(narrow, "default").items():
        assert torch.equal(mine[name], value)
    for name, value in mine.items():
        assert torch.equal(value, adapter_parameters(one, "old")[name])
        bound, largest = value.shape[1] ** -0.5, float(value.detach().abs().max())
        assert 0.8 * bound < largest <= bound if ".lora_A." in name else largest == 0
    assert not torch.equal(
        mine["head.linear.lora_A.weight"], adapter_parameters(other, "default")["head.linear.lora_A.weight"]
    )
    low = [value for name, value in mine.items() if name.endswith("lora_A.weight")]
    assert len({tuple(value.flatten().tolist()) for value in low}) == len(low)


def test_shapes_are_those_of_an_injected_model_and_full_size_needs_no_weights():
    model = debug_model()
    shapes = adapter_shapes(model, CONFIG)
    assert shapes == {
        name: value.shape for name, value in adapter_parameters(inject(model, CONFIG), "default").items()
    }
    with torch.device("meta"):
        mini = build_model(flavor("mini"))
    inject(mini, LoraConfig())
    counted = sum(size.numel() for size in adapter_shapes(build_model(flavor("mini")), LoraConfig()).values())
    assert sum(parameter.numel() for parameter in mini.parameters() if parameter.requires_grad) == counted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("self_attn",)}, "unknown group 'self_attn'; did you mean 'self_attention'"),
        ({"targets": ("all-linear",)}, "unknown group 'all-linear'"),
        ({"targets": ()}, "targets is empty"),
        ({"rank": 0}, "rank of at least 1"),
        ({"alpha": 0.0}, "alpha above 0"),
    ],
)
def test_configs_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**changes)


def test_injecting_twice_is_refused():
    model = inject(debug_model(), CONFIG)
    with pytest.raises(ValueError, match="has adapters already"):
        inject(model, CONFIG)


@pytest.fixture(scope="module", params=PARADIGMS)
def folders(request, tmp_path_factory) -> tuple[Path, Path, Tensor]:
    """A base model's folder, a trained adapter's, and what the model with it answers."""
    root = tmp_path_factory.mktemp(request.param)
    model = debug_model(name=request.param)
    weights = {
        "model": {name: value + 1 for name, value in model.state_dict().items()},
        "ema": model.state_dict(),
    }
    facts = {"codec_id": "test", "ema_updates": 3, "stage": "stage3"}
    base_id = write_model(root / "base", request.param, model.args, weights, facts)  # type: ignore[arg-type]
    fill(inject(model, CONFIG))
    described = Adapter(
        flavor=request.param, base_id=base_id, config=CONFIG, facts={"step": 7, "preferences": "votes-1"}
    )
    save_adapter(root / "adapter", gathered(adapter_parameters(model, "default")), described)
    return root / "base", root / "adapter", answer(model).detach()


def test_loading_gives_the_same_model_in_both_roles(folders):
    base, folder, expected = folders
    model, adapter = adapted_model(base, folder)
    assert torch.equal(answer(model), expected)
    assert adapter.facts["preferences"] == "votes-1" and len(adapter.adapter_id) == 16
    for name, value in adapter_parameters(model, "default").items():
        assert torch.equal(value, adapter_parameters(model, "old")[name])


def test_plain_peft_loads_the_folder(folders):
    base, folder, expected = folders
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter.json",
    }
    wrapped = peft.PeftModel.from_pretrained(load_model(base)[0], str(folder))  # type: ignore[arg-type]
    assert torch.equal(answer(wrapped), expected)
    model = load_model(base)[0]
    peft.inject_adapter_in_model(peft.PeftConfig.from_pretrained(str(folder)), model)
    tensors = {
        name.removeprefix("base_model.model."): value
        for name, value in peft.load_peft_weights(str(folder), device="cpu").items()
    }
    result = peft.set_peft_model_state_dict(model, tensors)
    assert not result.unexpected_keys and torch.equal(answer(model), expected)


def test_merged_folder_answers_like_the_adapter(folders, tmp_path):
    base, folder, expected = folders
    merged_id = merge_adapter(base, folder, tmp_path / "merged", {"reward": "sync"})
    for weights in ("ema", "model"):
        model, described = load_model(tmp_path / "merged", weights)
        torch.testing.assert_close(answer(model), expected, rtol=1e-5, atol=1e-5)
    base_facts = read_model_folder(base).facts
    facts = described.facts
    assert facts["checkpoint_id"] == merged_id != base_facts["checkpoint_id"] == facts["parent"]
    assert (facts["codec_id"], facts["reward"], facts["step"], facts["base"]) == (
        "test",
        "sync",
        7,
        base_facts,
    )
    assert facts["adapter_id"] == read_adapter(folder)[0].adapter_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flavor": "mini"}, "adapter of flavor debug, the model is mini"),
        ({"base_id": "0123"}, "adapter of base model .*, this one is 0123"),
        ({"config": dataclasses.replace(CONFIG, rank=8)}, "adapter of rank 4, the recipe says 8"),
        ({"config": dataclasses.replace(CONFIG, alpha=1.0)}, r"adapter of alpha 8\.0, the recipe says 1\.0"),
        ({"config": dataclasses.replace(CONFIG, targets=("ffn",))}, "adapter of targets"),
    ],
)
def test_adapters_of_something_else_are_refused_in_one_line(tmp_path, changes, message):
    model = inject(debug_model(), CONFIG)
    adapter = Adapter(flavor="debug", base_id="abcd", config=CONFIG)
    save_adapter(tmp_path, gathered(adapter_parameters(model, "default")), adapter)
    asked = {"flavor": "debug", "base_id": "abcd", "config": CONFIG}
    assert load_adapter(tmp_path, model, **asked).flavor == "debug"
    with pytest.raises(ValueError, match=message) as caught:
        load_adapter(tmp_path, model, **{**asked, **changes})
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_merging_onto_another_base_is_refused(folders, tmp_path):
    base, folder, _ = folders
    described = read_model_folder(base)
    other = debug_model(seed=3, name=described.flavor)
    write_model(tmp_path / "other", described.flavor, described.args, {"ema": other.state_dict()}, {})
    with pytest.raises(ValueError, match="adapter of base model"):
        merge_adapter(tmp_path / "other", folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter\.json: not found"):
        read_adapter(tmp_path)
    model = inject(debug_model(), CONFIG)
    tensors = gathered(adapter_parameters(model, "default"))
    save_adapter(tmp_path, tensors, Adapter(flavor="debug", base_id="abcd", config=CONFIG))
    sidecar, weights = tmp_path / "adapter.json", tmp_path / "adapter_model.safetensors"
    whole = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**whole, "surprise": 1}))
    with pytest.raises(ValueError, match=r"got .*surprise"):
        read_adapter(tmp_path)
    sidecar.write_text(json.dumps({**whole, "config": {**whole["config"], "dropout": 0.1}}))
    with pytest.raises(ValueError, match=r"config\.dropout: unknown key|dropout: unknown key"):
        read_adapter(tmp_path)
    sidecar.write_text(json.dumps(whole))
    stored = load_file(weights)
    save_file({name: value for name, value in stored.items() if "head.linear.lora_B" not in name}, weights)
    with pytest.raises(ValueError, match=r"missing head\.linear\.lora_B\.weight"):
        load_adapter(tmp_path, model, "debug", "abcd", CONFIG)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_adapter(tmp_path)
