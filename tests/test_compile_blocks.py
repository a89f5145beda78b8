import shutil

import pytest
import torch
from context_ranks import answers
from model_cases import audio_stream, conditioning, debug_model, video_stream
from torch._dynamo.testing import CompileCounterWithBackend

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


@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_inductor_compiles_blocks_for_lengths_that_vary():
    plain, compiled = debug_model(), debug_model()
    compile_blocks(compiled.block_groups(), "inductor")
    for tokens in (10, 11, 13):
        case = (video_stream(), audio_stream(tokens=tokens), conditioning())
        expected, found = answers(plain, case), answers(compiled, case)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], atol=5e-5, rtol=1e-4)
