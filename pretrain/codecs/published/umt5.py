"""The umT5-xxl text encoder (transformers' `UMT5EncoderModel`): hidden states, timbre token positions.

The encoder sees the prompt with a timbre token after every `<S>` and the closing `</s>`, as Wan's and NAVA's
releases give it; white space is collapsed (Wan's cleaning also repairs broken encodings with ftfy: give
prompts that need none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pretrain.codecs.base import EncodedText
from pretrain.codecs.published.deferred import on_device
from pretrain.codecs.published.weights import (
    Source,
    check_shapes,
    expect,
    read_config,
    shapes_of,
    tensor_shapes,
    weight_files,
)
from pretrain.config import one_line
from pretrain.prompt import TIMBRE, ParsedPrompt, with_timbre_tokens

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

_REPOSITORY = "Wan-AI/Wan2.2-TI2V-5B-Diffusers, folders text_encoder and tokenizer (google/umt5-xxl)"
SOURCE = Source("the umT5-xxl encoder", _REPOSITORY, "Apache-2.0")
MAX_TOKENS = 512
_AT_ONCE = 32  # prompts
_UNUSED = ("decoder.", "lm_head.")  # of a whole umT5
_TIED = "encoder.embed_tokens.weight"


class TextNetworks(NamedTuple):
    """What a prompt passes through."""

    tokenizer: Any
    encoder: UMT5EncoderModel


class UMT5TextEncoder:
    """Implements `TextEncoder`, loading `networks` (tokenizer, encoder) on first use; float32 on the CPU."""

    def __init__(
        self,
        networks: Callable[[], TextNetworks],
        width: int,
        tokenizer: Callable[[], Any] | None = None,
    ) -> None:
        self.networks, self.width = networks, width
        self._tokenizer = tokenizer or (lambda: networks().tokenizer)

    def check(self, prompt: ParsedPrompt) -> None:
        """Raises ValueError unless 1 to 512 tokens; loads the tokenizer alone."""
        _token_ids(self._tokenizer(), prompt)

    @on_device
    @torch.no_grad()
    def encode(self, prompts: Sequence[ParsedPrompt]) -> EncodedText:
        """States [B, S, D], zero where padded, S the batch's longest; ValueError unless 1 to 512 tokens."""
        tokenizer, encoder = self.networks()
        rows = [_token_ids(tokenizer, prompt) for prompt in prompts]
        length = max((len(ids) for ids, _ in rows), default=0)
        states = torch.zeros(len(rows), length, self.width)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        positions = torch.full(
            (len(rows), max((len(places) for _, places in rows), default=0)), -1, dtype=torch.int64
        )
        for row, (ids, places) in enumerate(rows):
            mask[row, : len(ids)] = True
            positions[row, : len(places)] = torch.tensor(places, dtype=torch.int64)
        # neighbours in length together: little padding is computed
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
        for start in range(0, len(order), _AT_ONCE):
            batch = order[start : start + _AT_ONCE]
            longest = len(rows[batch[-1]][0])
            ids = torch.full((len(batch), longest), tokenizer.pad_token_id or 0)
            for index, row in enumerate(batch):
                ids[index, : len(rows[row][0])] = torch.tensor(rows[row][0])
            real = mask[batch, :longest]
            hidden = encoder(
                ids.to(encoder.device), attention_mask=real.long().to(encoder.device)
            ).last_hidden_state
            states[batch, :longest] = hidden.float().cpu() * real[:, :, None]
        return EncodedText(states, mask, positions)


def _token_ids(tokenizer: Any, prompt: ParsedPrompt) -> tuple[list[int], list[int]]:
    """Ids of a prompt with its timbre tokens and the closing token, and where the timbre tokens are."""
    text = " ".join(with_timbre_tokens(prompt).split())
    ids = tokenizer(text, add_special_tokens=True)["input_ids"] if text else []
    if not 0 < len(ids) <= MAX_TOKENS:
        raise ValueError(f"prompt of {len(ids)} text tokens; give 1 to {MAX_TOKENS}: {prompt.text[:60]!r}")
    timbre = tokenizer.convert_tokens_to_ids(TIMBRE)
    places = [index for index, token in enumerate(ids) if token == timbre]
    if len(places) != len(prompt.spans):
        found = f"{len(places)} {TIMBRE} tokens for {len(prompt.spans)} speech spans"
        raise ValueError(f"{found} in {prompt.text[:60]!r}; the tokenizer cuts them, give umT5's own")
    return ids, places


def text_folders(path: Path) -> tuple[Path, Path]:
    """(encoder, tokenizer): subfolders of these names, or one folder. Raises FileNotFoundError."""
    for encoder, tokenizer in ((path / "text_encoder", path / "tokenizer"), (path, path)):
        if (encoder / "config.json").is_file():
            if not (tokenizer / "tokenizer_config.json").is_file():
                raise FileNotFoundError(
                    f"{tokenizer}: no tokenizer_config.json of umT5's tokenizer; {SOURCE.advice}"
                )
            return encoder, tokenizer
    raise FileNotFoundError(
        f"{path}: no config.json of {SOURCE.what} here nor in text_encoder/; {SOURCE.advice} and name its "
        "folder"
    )


def check_umt5(encoder: Path, tokenizer: Path) -> tuple[list[Path], list[Path], int]:
    """Checked files of both and the states' width. Raises a one-line ValueError or FileNotFoundError."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = read_config(encoder, SOURCE)
    expect(config, {"model_type": "umt5"}, encoder, SOURCE)
    with torch.device("meta"):
        wanted = shapes_of(UMT5EncoderModel(UMT5Config(**config)))
    files = weight_files(encoder, SOURCE)
    found = {
        name: shape for name, shape in tensor_shapes(files, SOURCE).items() if not name.startswith(_UNUSED)
    }
    found |= {name: wanted[name] for name in (_TIED,) if name in wanted and name not in found}
    check_shapes(found, wanted, encoder, SOURCE)
    known = load_tokenizer(tokenizer)
    if len(known) > config["vocab_size"]:
        raise ValueError(
            f"{tokenizer}: {len(known)} tokens, the encoder knows {config['vocab_size']}; {SOURCE.advice} "
            "together"
        )
    tokenizer_files = [*sorted(tokenizer.glob("*token*.json")), *sorted(tokenizer.glob("*.model"))]
    return [encoder / "config.json", *files], tokenizer_files, config["d_model"]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local folder; ValueError if unreadable or without a timbre token."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises whatever its parsers do
        reason = one_line(error, 200)
        raise ValueError(
            f"{folder}: not a readable tokenizer ({type(error).__name__}: {reason}); {SOURCE.advice}"
        ) from None
    timbre = tokenizer.convert_tokens_to_ids(TIMBRE)
    if (
        timbre is None
        or timbre == tokenizer.unk_token_id
        or tokenizer(f"<S>{TIMBRE}a<E>")["input_ids"].count(timbre) != 1
    ):
        raise ValueError(
            f"{folder}: {TIMBRE} is no token of this tokenizer, so voices have no place in the text; "
            f"{SOURCE.advice}"
        )
    return tokenizer


def load_umt5(encoder: Path, tokenizer: Path, dtype: torch.dtype, device: str) -> TextNetworks:
    """Both in evaluation mode. Raises as `check_umt5`."""
    from transformers import UMT5EncoderModel

    check_umt5(encoder, tokenizer)
    network: Any = UMT5EncoderModel.from_pretrained(
        encoder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return TextNetworks(load_tokenizer(tokenizer), network.to(device).eval().requires_grad_(False))
