"""The sizes of a NAVA transformer, all of them, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pretrain.types import AUDIO_CHANNELS, SPEAKER_DIM, VIDEO_CHANNELS

# which tokens share self-attention (pretrain.model.flavors)
Paradigm = Literal["nava", "dual_tower", "unified"]

# What a config.json may ask for before a parameter is thought of; several times the largest model known.
MOST = {
    **dict.fromkeys(("num_alignment_blocks", "num_fusion_blocks"), 1024),
    **dict.fromkeys(("width", "text_width", "audio_embed_hidden", "time_frequencies", "speaker_dim"), 2**17),
    **dict.fromkeys(("ffn_width",), 2**20),
    **dict.fromkeys(("num_heads", "video_channels", "audio_channels", "audio_embed_kernel"), 2**14),
    "patch_size": 64,
}


@dataclass(frozen=True, kw_only=True)
class ModelArgs:
    """Sizes and switches; the defaults are the published 6.3 B model (paper section 3, release config).

    Raises ValueError where sizes do not fit each other.
    """

    paradigm: Paradigm = "nava"
    width: int = 3072
    num_heads: int = 24
    ffn_width: int = 14336
    num_alignment_blocks: int = 10  # double-stream; of dual_tower: pairs of tower blocks
    num_fusion_blocks: int = 20  # single-stream
    text_width: int = 4096
    time_frequencies: int = 256
    audio_embed_hidden: int = 8192
    audio_embed_kernel: int = 7
    video_channels: int = VIDEO_CHANNELS
    audio_channels: int = AUDIO_CHANNELS
    speaker_dim: int = SPEAKER_DIM
    patch_size: int = 2  # latent rows and columns a video token covers
    rope_theta: float = 10000.0
    # audio token p turns by its time in video tokens (0.24 p at full size); False: by p, for comparison
    rate_aware_rope: bool = True
    eps: float = 1e-6
    gelu: str = "tanh"  # of the FFN; "none" = exact (erf), whose CPU kernel is 2.6 times as fast
    split_ffn_and_norms: bool = False  # True: alignment blocks hold an FFN and a norm3 per modality (7.178 B)
    # None: the head predicts the velocity (published weights). A number: the clean latents, given
    # the share of its input that is right if the context leaves so much deviation of them open. A width near
    # the size of a token (192 here, 192 values per video token) cannot carry the noise to the head.
    open_deviation_video: float | None = None
    open_deviation_audio: float | None = None
    attend_text_padding: bool = False  # True for the published weights, which were trained that way
    # False: cross-attention contributes nothing where the text is dropped. True: it attends to 512 zero rows
    # (the release).
    dropped_text_is_zeros: bool = False
    # False: a timbre token replaces the context vector of its place (published weights). Cross-attention sees
    # a set, so a token without its place's text state cannot say which span it belongs to; True adds the
    # token to that state.
    timbre_keeps_text: bool = False

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if (value := getattr(self, name)) > most:
                raise ValueError(f"{name} must be at most {most}, got {value:.6g}")
        if self.num_heads < 1 or self.width % self.num_heads or self.head_dim % 2:
            raise ValueError(f"width {self.width} must split into {self.num_heads} heads of even size")
        for name in ("open_deviation_video", "open_deviation_audio"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive or None, got {value}")
        unused = {"dual_tower": self.num_fusion_blocks, "unified": self.num_alignment_blocks}.get(
            self.paradigm, 0
        )
        if unused:
            kind = "fusion" if self.paradigm == "dual_tower" else "alignment"
            raise ValueError(
                f"paradigm {self.paradigm} has no {kind} blocks; num_{kind}_blocks must be 0, got {unused}"
            )
        if self.dropped_text_is_zeros and not self.attend_text_padding:
            raise ValueError("dropped_text_is_zeros attends to rows of padding; set attend_text_padding too")
        if self.head_dim < 6:
            raise ValueError(f"width / num_heads is {self.head_dim}; three rotary axes need at least 6")

    def as_facts(self) -> dict[str, Any]:
        """What a model folder and a training's identity say of it.

        A field that older models lack is left out at its default, as they have it.
        """
        facts = asdict(self)
        if self.rate_aware_rope:
            del facts["rate_aware_rope"]
        return facts

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads
