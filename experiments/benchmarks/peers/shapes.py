"""The sizes at which ours and diffusers' transformers are held against each other, the same for both."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape, training_flops


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's sizes and the clips it is given; `audio` 0 = video alone."""

    name: str
    width: int
    heads: int
    ffn: int
    alignment: int  # blocks
    fusion: int
    batch: int
    frames: int  # latent frames
    rows: int  # latents
    columns: int
    audio: int  # tokens
    context: int  # text states
    text_width: int
    threads: int = 0  # of torch on the CPU; 0 = all

    @property
    def video_tokens(self) -> int:
        """Of one clip, in patches of 2 x 2 latents."""
        return self.frames * self.rows * self.columns // 4

    @property
    def tokens(self) -> int:
        """Of the whole batch."""
        return self.batch * (self.video_tokens + self.audio)

    @property
    def depth(self) -> int:
        return self.alignment + self.fusion

    def args(self) -> ModelArgs:
        """Our model of these sizes, answering with velocities as the published one does."""
        return ModelArgs(
            width=self.width,
            num_heads=self.heads,
            ffn_width=self.ffn,
            num_alignment_blocks=self.alignment,
            num_fusion_blocks=self.fusion,
            text_width=self.text_width,
            audio_embed_hidden=256,
            audio_embed_kernel=3,
        )

    def training_flops(self) -> int:
        """Forward and backward of our model on the whole batch, matmuls only (pretrain.model.flops)."""
        clip = ClipShape(video=self.video_tokens, audio=self.audio, context=self.context)
        return self.batch * training_flops(self.args(), clip)


_MINI = {  # as a rank of the demo trains it: 16 clips, one thread
    "batch": 16,
    "threads": 1,
    "width": 192,
    "heads": 3,
    "ffn": 768,
    "alignment": 1,
    "fusion": 3,
    "frames": 7,
    "rows": 4,
    "columns": 4,
    "context": 25,
    "text_width": 256,
}
_SMALL = {
    "width": 512,
    "heads": 8,
    "ffn": 2048,
    "alignment": 2,
    "fusion": 4,
    "batch": 1,
    "frames": 10,
    "rows": 16,
    "columns": 16,
    "context": 64,
    "text_width": 512,
}
_MEDIUM = {
    "width": 1024,
    "heads": 8,
    "ffn": 4096,
    "alignment": 1,
    "fusion": 3,
    "batch": 1,
    "frames": 5,
    "rows": 32,
    "columns": 32,
    "context": 128,
    "text_width": 1024,
}
_LARGE = {
    "width": 3072,
    "heads": 24,
    "ffn": 14336,
    "alignment": 0,
    "fusion": 1,
    "batch": 1,
    "rows": 44,
    "columns": 80,
    "context": 512,
    "text_width": 4096,
}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="mini_video", audio=0, **_MINI),
        Shape(name="mini_joint", audio=26, **_MINI),
        Shape(name="small_video", audio=0, **_SMALL),
        Shape(name="small_joint", audio=42, **_SMALL),
        Shape(name="medium_video", audio=0, **_MEDIUM),
        Shape(name="large_block", frames=2, audio=0, **_LARGE),
        Shape(name="full_block", frames=37, audio=0, **_LARGE),
        Shape(name="full_block_joint", frames=37, audio=151, **_LARGE),
    )
}
CPU_SHAPES = tuple(name for name in SHAPES if not name.startswith("full"))
GPU_SHAPES = ("mini_joint", "small_video", "large_block", "full_block", "full_block_joint")
