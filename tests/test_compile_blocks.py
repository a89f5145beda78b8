import shutil

import pytest
import torch
from context_ranks import answers
from model_cases import audio_stream, conditioning, debug_model, video_stream
from torch._dynamo.testing import CompileCounterWithBackend

from pretrain.model.scaled_attention import scaled_attention
from pretrain.titan.activations import checkpointed
from pretrain.titan.parallelize import compile_blocks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["none", "selective"])
def test_blocks_are_one_graph_each_for_all_lengths(mode):
    """No break inside a block, numbers as without compiling, and nothing compiled again from the third length
    on."""
    plain, compiled, counter = debug_model(), debug_model(), CompileCounterWithBackend("aot_eager")
    for group in compiled.block_groups():
        group[0] = checkpointed(group[0], mode)
    compile_blocks(compiled.block_groups(), counter)
    frames = []
    for tokens in (10, 11, 13, 17):
        case = (video_stream(), audio_stream(tokens=tokens), conditioning())
        expected, found = answers(plain, case), answers(compiled, case)
        frames.append(counter.frame_count)
        for name, value in found.items():
            torch.testing.assert_close(
                value, expected[name.replace("_checkpoint_wrapped_module.", "")], atol=5e-5, rtol=1e-4
            )
    assert frames[0] == 2 and frames[1] == frames[2] == frames[3] <= 4


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_inductor_compiles_joint_attention_for_lengths_that_vary():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 64, dtype=torch.bfloat16)

    def attend(video, audio):
        heads = linear(torch.cat([video, audio], dim=1)).unflatten(-1, (2, 32)).transpose(1, 2)
        out = scaled_attention(heads, heads, heads, mask=None).transpose(1, 2).flatten(2)
        return linear(out).split([video.shape[1], audio.shape[1]], dim=1)

    def gradient(attend, *streams):
        inputs = [stream.clone().requires_grad_() for stream in streams]
        torch.cat(attend(*inputs), dim=1).square().sum().backward()
        return torch.cat([x.grad for x in inputs], dim=1)

    compiled = torch.compile(attend, fullgraph=True)
    for tokens in ((64, 20), (80, 21), (48, 13)):
        streams = [torch.randn(2, count, 64, dtype=torch.bfloat16) for count in tokens]
        expected, found = gradient(attend, *streams), gradient(compiled, *streams)
        assert (found - expected).norm() < 0.03 * expected.norm()
