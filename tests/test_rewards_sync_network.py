"""SyncNet layer for layer against a plain 3-D build, its published file, its own folders, and the folded form
that scores."""

import json
from collections import OrderedDict
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from rewards.sync.inference import Embedder
from rewards.sync.layers import from_plain, plain
from rewards.sync.syncnet import MINI, PUBLISHED, SyncNet, load_published, load_syncnet, save_syncnet

Net = TypeVar("Net", bound=nn.Module)


def block(kind, norm, *args, **options):
    return [kind(*args, **options), norm(args[1]), nn.ReLU()]


def published_build() -> nn.Module:
    """The published layer table written out with PyTorch's own 3-D layers, one window at a time."""
    c3, b3, p3 = nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d
    c2, b2, p2 = nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d
    net = nn.Module()
    net.netcnnaud = nn.Sequential(
        *block(c2, b2, 1, 64, (3, 3), padding=(1, 1)),
        p2((1, 1), (1, 1)),
        *block(c2, b2, 64, 192, (3, 3), padding=(1, 1)),
        p2((3, 3), (1, 2)),
        *block(c2, b2, 192, 384, (3, 3), padding=(1, 1)),
        *block(c2, b2, 384, 256, (3, 3), padding=(1, 1)),
        *block(c2, b2, 256, 256, (3, 3), padding=(1, 1)),
        p2((3, 3), (2, 2)),
        *block(c2, b2, 256, 512, (5, 4)),
    )
    net.netfcaud = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
    net.netfclip = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
    net.netcnnlip = nn.Sequential(
        *block(c3, b3, 3, 96, (5, 7, 7), stride=(1, 2, 2)),
        p3((1, 3, 3), (1, 2, 2)),
        *block(c3, b3, 96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)),
        p3((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        *block(c3, b3, 256, 256, (1, 3, 3), padding=(0, 1, 1)),
        *block(c3, b3, 256, 256, (1, 3, 3), padding=(0, 1, 1)),
        *block(c3, b3, 256, 256, (1, 3, 3), padding=(0, 1, 1)),
        p3((1, 3, 3), (1, 2, 2)),
        *block(c3, b3, 256, 512, (1, 6, 6)),
    )
    return net.eval()


def lively(net: Net, seed: int = 0) -> Net:
    """Batch norms as after a training: statistics and gains that a wrong fold would miss."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.1 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return net.eval()


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    torch.manual_seed(0)
    return lively(published_build())


@pytest.fixture(scope="module")
def published_file(reference, tmp_path_factory):
    """A file as the published one: a pickled state_dict without the counters of batches."""
    path = tmp_path_factory.mktemp("weights") / "syncnet_v2.model"
    torch.save(
        OrderedDict(
            (k, v) for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")
        ),
        path,
    )
    return path


@pytest.fixture(scope="module")
def published(published_file) -> SyncNet:
    return load_published(published_file)


@pytest.fixture(scope="module")
def mini() -> SyncNet:
    torch.manual_seed(1)
    return lively(SyncNet(MINI))


def crops_of(num: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


def as_tensor(crops: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(crops).permute(3, 0, 1, 2)[None].float()


def test_published_has_its_parameters_and_names(published, reference):
    state = published.state_dict()
    assert sum(weight.numel() for weight in published.parameters()) == 13_631_616
    assert (
        sum(tensor.numel() for name, tensor in state.items() if not name.endswith("num_batches_tracked"))
        == 13_640_256
    )
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        name: tuple(t.shape) for name, t in reference.state_dict().items()
    }
    assert {
        "netcnnaud.18.weight",
        "netcnnlip.0.bias",
        "netcnnlip.19.running_var",
        "netfcaud.3.weight",
        "netfclip.1.bias",
    } <= set(state)
    assert sum(weight.numel() for weight in SyncNet(MINI).parameters()) == 764_992


@torch.inference_mode()
def test_published_equals_the_plain_3d_build_on_bgr(published, reference):
    frames = as_tensor(crops_of(5, 224))
    lips = reference.netfclip(reference.netcnnlip(frames.flip(1)).flatten(1))
    torch.testing.assert_close(
        published.embed_lips(frames)[0], lips, rtol=1e-4, atol=1e-5 * float(lips.abs().max())
    )
    windows = 10 * torch.randn(3, 1, 13, 20, generator=torch.Generator().manual_seed(1))
    sound = reference.netfcaud(reference.netcnnaud(windows).flatten(1))
    torch.testing.assert_close(
        published.embed_sound(windows), sound, rtol=1e-4, atol=1e-5 * float(sound.abs().max())
    )


@torch.inference_mode()
def test_one_pass_over_a_clip_equals_window_by_window(mini):
    frames = torch.cat([as_tensor(crops_of(12, 32, seed)) for seed in (0, 1)])
    every = mini.embed_lips(frames)
    assert every.shape == (2, 8, 128)
    alone = torch.stack([mini.embed_lips(frames[:, :, i : i + 5])[:, 0] for i in range(8)], dim=1)
    torch.testing.assert_close(every, alone, rtol=1e-5, atol=1e-6)
    assert (every[:, 0] - every[:, 1]).abs().max() > 1e-3


@torch.inference_mode()
def test_folding_changes_nothing_mini(mini):
    crops, windows = (
        crops_of(80, 32),
        np.random.default_rng(0).standard_normal((70, 1, 13, 20)).astype(np.float32) * 10,
    )
    embedder = Embedder(mini)
    lips, sound = mini.embed_lips(as_tensor(crops))[0], mini.embed_sound(torch.from_numpy(windows))
    np.testing.assert_allclose(embedder.lips([crops])[0], lips, atol=1e-5 * float(lips.abs().max()))
    np.testing.assert_allclose(embedder.sound([windows])[0], sound, atol=1e-5 * float(sound.abs().max()))


@torch.inference_mode()
def test_folding_changes_nothing_published(published):
    crops, windows = (
        crops_of(6, 224),
        np.random.default_rng(0).standard_normal((5, 1, 13, 20)).astype(np.float32) * 10,
    )
    embedder = Embedder(published)
    lips, sound = published.embed_lips(as_tensor(crops))[0], published.embed_sound(torch.from_numpy(windows))
    np.testing.assert_allclose(embedder.lips([crops])[0], lips, atol=1e-5 * float(lips.abs().max()))
    np.testing.assert_allclose(embedder.sound([windows])[0], sound, atol=1e-5 * float(sound.abs().max()))


def test_embeddings_do_not_depend_on_what_else_is_in_the_call(mini):
    embedder, clips = Embedder(mini), [crops_of(num, 32, num) for num in (5, 70, 41)]
    together = embedder.lips(clips)
    assert [len(rows) for rows in together] == [1, 66, 37]
    for rows, clip in zip(together, clips, strict=True):
        np.testing.assert_allclose(rows, embedder.lips([clip])[0], atol=1e-6)
    assert embedder.lips([]) == [] and embedder.sound([]) == []


def test_bfloat16_is_near(mini):
    crops = crops_of(30, 32)
    exact, rough = Embedder(mini).lips([crops])[0], Embedder(mini, torch.bfloat16).lips([crops])[0]
    assert 0 < np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("shape", [(1, 3, 4, 32, 32), (1, 3, 5, 32, 31), (1, 1, 5, 32, 32), (3, 5, 32, 32)])
def test_lips_of_another_shape_are_refused(mini, shape):
    with pytest.raises(ValueError, match="embed_lips wants"):
        mini.embed_lips(torch.zeros(shape))


def test_sound_of_another_shape_is_refused(mini):
    with pytest.raises(ValueError, match="embed_sound wants"):
        mini.embed_sound(torch.zeros(4, 1, 20, 13))


def broken(tensors, change):
    tensors = OrderedDict(tensors)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("netfcaud.0.bias"), "1 missing names, as netfcaud.0.bias"),
        (lambda t: t.update({"netS.0.weight": torch.zeros(3)}), "1 unknown names, as netS.0.weight"),
        (
            lambda t: t.update({"netcnnlip.0.weight": torch.zeros(96, 3, 3, 7, 7)}),
            r"netcnnlip.0.weight is \[96, 3, 3, 7, 7\]",
        ),
        (
            lambda t: t.update({"netfclip.3.bias": torch.full((1024,), torch.nan)}),
            "netfclip.3.bias is torch.float32 or not finite",
        ),
        (
            lambda t: t.update({"netfclip.3.bias": torch.zeros(1024, dtype=torch.int64)}),
            "netfclip.3.bias is torch.int64",
        ),
        (lambda t: t.update({"netfclip.3.bias": "text"}), "not a mapping of names to tensors"),
    ],
)
def test_a_file_that_differs_is_one_line(reference, tmp_path, change, words):
    path = tmp_path / "syncnet_v2.model"
    torch.save(broken(reference.state_dict(), change), path)
    with pytest.raises(ValueError, match=words) as error:
        load_published(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_that_is_none_is_one_line(published_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; get it from"):
        load_published(tmp_path / "none.model")
    with pytest.raises(ValueError, match="sha256"):
        load_published(published_file, sha256="0" * 64)
    cut = tmp_path / "cut.model"
    cut.write_bytes(published_file.read_bytes()[:1_000_000])
    with pytest.raises(ValueError, match="not a file of tensors") as error:
        load_published(cut)
    assert "\n" not in str(error.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harmed").touch, ())

    torch.save({"netfcaud.0.bias": Harm()}, tmp_path / "syncnet_v2.model")
    with pytest.raises(ValueError, match="not a file of tensors"):
        load_published(tmp_path / "syncnet_v2.model")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("args", [MINI, PUBLISHED])
def test_arguments_survive_json(args):
    assert from_plain(json.loads(json.dumps(plain(args))), "here") == args


def test_a_folder_is_read_as_it_was_written(mini, tmp_path):
    mini.provenance = {"seed": 7, "corpus": "talk_a"}
    save_syncnet(mini, tmp_path / "reward")
    again = load_syncnet(tmp_path / "reward")
    assert again.args == MINI and again.provenance == {"seed": 7, "corpus": "talk_a"} and not again.training
    for name, tensor in mini.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_damaged_folder_is_one_line(mini, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        load_syncnet(tmp_path)
    save_syncnet(mini, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for damage, words in [
        (lambda c: c.update(format="other"), "format is not"),
        (lambda c: c["args"].update(colour="red"), r"unknown keys \['colour'\]"),
        (lambda c: c["args"]["lips"][0].update(depth=3), "not the arguments of a SyncNet"),
        (lambda c: c["args"].update(embedding=64), r"netfcaud.3.weight is \[128, 128\]"),
        (lambda c: c.update(sha256="0"), "copy the folder anew"),
    ]:
        changed = json.loads(json.dumps(config))
        damage(changed)
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=words) as error:
            load_syncnet(tmp_path)
        assert "\n" not in str(error.value)
