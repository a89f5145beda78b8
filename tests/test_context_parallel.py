from dataclasses import replace

import pytest
import torch
from context_ranks import ARGS, answers, cases, filled_model, rank
from hypothesis import given
from hypothesis import strategies as st
from model_cases import debug_model
from rank_processes import run_processes

from pretrain.model.context_parallel import (
    ContextGroup,
    Share,
    check_degree,
    check_split,
    join_video,
    split_video,
)

SIZES = {
    "frames": st.integers(0, 5),
    "rows": st.integers(1, 4),
    "columns": st.integers(1, 4),
    "extra": st.integers(0, 9),
}


def shares(frames: int, rows: int, columns: int, audio: int, size: int) -> list[Share]:
    return [Share(ContextGroup(rank, size, ""), frames, rows, columns, audio) for rank in range(size)]


@given(frames=st.integers(1, 5), cells=st.integers(1, 6), size=st.integers(1, 4), dim=st.integers(0, 2))
def test_video_joins_as_it_was_split(frames, cells, size, dim):
    shape = [2, 3, 2]
    shape[dim] = frames * cells * size
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    parts = split_video(x, frames, size, dim)
    assert {part.shape[dim] for part in parts} == {frames * cells}
    assert torch.equal(join_video(parts, frames, dim), x)


@given(size=st.integers(1, 4), **SIZES)
def test_order_is_what_the_ranks_hold_one_after_the_other(size, frames, rows, columns, extra):
    audio = size + extra if extra or not frames else 0
    every = shares(frames, rows, columns * size, audio, size)
    video, sound = torch.arange(sum(every[0].whole)).split(every[0].whole)
    held = [
        torch.cat([share.own_video(video, 0) if frames else video, share.own_audio(sound, 0)])
        for share in every
    ]
    assert torch.equal(torch.cat(held), every[0].order())
    assert torch.equal(every[0].order().sort().values, torch.cat([video, sound]))
    assert [len(part) for part in held] == [sum(pair) for pair in every[0].counts]
    assert all(share.counts == every[0].counts for share in every)


@given(frames=st.integers(1, 5), cells=st.integers(1, 6), size=st.integers(1, 4))
def test_every_rank_holds_every_frame_in_equal_parts(frames, cells, size):
    """Groups by frame stay even: modulation per frame applies to a rank's part as to the whole."""
    frame_of = torch.arange(frames).repeat_interleave(cells * size)
    for part in split_video(frame_of, frames, size, 0):
        assert torch.equal(part.view(frames, cells), torch.arange(frames)[:, None].expand(-1, cells))


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.distributed
def test_outputs_and_gradients_equal_one_rank(tmp_path, world_size):
    assert run_processes(rank, world_size, tmp_path, tmp_path) == [0] * world_size, (
        tmp_path / "log.0"
    ).read_text()[-2000:]
    found, model = torch.load(tmp_path / "results.pt", weights_only=True), filled_model()
    for name, case in cases().items():
        expected = answers(model, case)
        assert found[name].keys() == expected.keys(), name
        for key, value in expected.items():
            scale = max(1.0, float(value.abs().max()))
            close = {"atol": 1e-5 * scale, "rtol": 1e-5, "msg": f"{{}} of {name} {key}".format}
            torch.testing.assert_close(found[name][key], value, **close)


def test_unusable_degrees_are_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"parallel\.context 3 does not divide the model's 4 heads; choose a divisor"
    ):
        filled_model().join_context_group(ContextGroup(0, 3, ""))
    with pytest.raises(
        ValueError, match=r"parallel\.context 2: paradigm unified does not split its tokens; set it to 1"
    ):
        debug_model(name="debug_unified").join_context_group(ContextGroup(0, 2, ""))
    with pytest.raises(ValueError, match="a frame of 3 x 5 tokens does not split over 2 ranks"):
        check_split(2, 3, 5, 10, 2)
    with pytest.raises(ValueError, match="3 audio tokens are too few for 4 ranks"):
        check_split(0, 0, 0, 3, 4)
    check_split(37, 22, 40, 151, 8)
    check_degree(replace(ARGS, width=64, num_heads=8), 8)
