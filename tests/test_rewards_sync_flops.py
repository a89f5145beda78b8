"""Operations counted from the layer table against those counted from the layers as they run."""

import pytest
import torch
from torch import nn

from rewards.sync.layers import MINI, PUBLISHED, window_flops
from rewards.sync.syncnet import SyncNet


@pytest.mark.parametrize("args", [MINI, PUBLISHED])
@torch.inference_mode()
def test_flops_of_the_table_are_those_that_run(args):
    net, counted = SyncNet(args).eval(), 0

    def count(module, _, output):
        nonlocal counted
        counted += 2 * module.weight[0].numel() * output.numel()  # a weight row per output value

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.register_forward_hook(count)
    net.embed_lips(torch.zeros(1, 3, 5, args.image_size, args.image_size))
    assert counted == window_flops(args)["lips"]
    counted = 0
    net.embed_sound(torch.zeros(1, 1, 13, 20))
    assert counted == window_flops(args)["sound"]


def test_flops_of_the_published_network_by_hand():
    lips = (
        109**2 * 96 * 735
        + 26**2 * 256 * 2400
        + 3 * 13**2 * 256 * 2304
        + 512 * 256 * 36
        + 512 * 512
        + 512 * 1024
    )
    assert window_flops(PUBLISHED)["lips"] == 2 * lips
