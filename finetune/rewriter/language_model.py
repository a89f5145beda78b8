"""A causal language model from a folder of safetensors, checked first: no pickle, no remote code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.rewriter.form import ChatMessage
from pretrain.config import one_line
from pretrain.files import read_json, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SAVE_AS_SAFETENSORS = "load it where you trust it and call save_pretrained"


def check_folder(folder: Path) -> None:
    """Raises FileNotFoundError or ValueError in one line for a folder that must not or cannot be loaded."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give a causal language model with config.json, safetensors and its "
            "tokenizer"
        )
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder}: has a PEFT adapter (adapter_config.json); give the whole model, with the adapter "
            "merged into it"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json; give a causal language model's folder")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        advice = "fetch the model again"
        if (folder / name).is_file() and "auto_map" in read_json(folder / name, advice):
            raise ValueError(
                f"{folder / name}: auto_map asks for Python code of the model's own, which is never run; "
                "take another model"
            )
    if (folder / "custom_generate").exists():
        raise ValueError(
            f"{folder}: custom_generate is Python code of the model's own, which is never run; remove it"
        )
    weights = shards(folder)
    if not weights:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        found = (
            f"only {pickles[0]}, a pickle, which is never opened; {SAVE_AS_SAFETENSORS}"
            if pickles
            else "fetch the model again"
        )
        raise ValueError(f"{folder}: no model.safetensors; {found}")
    if missing := next((path for path in weights if not path.is_file()), None):
        raise FileNotFoundError(f"{missing}: named by {INDEX} and not there; fetch the model again")


def shards(folder: Path) -> list[Path]:
    """The weight files; [] where there are none. Raises ValueError for an index that leaves the folder."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        return []
    names = read_json(folder / INDEX, "fetch the model again").get("weight_map")
    files = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    if wrong := next(
        (name for name in files if Path(name).name != name or not name.endswith(".safetensors")), None
    ):
        raise ValueError(
            f"{folder / INDEX}: names {wrong!r}, which is no safetensors file of this folder; fetch the "
            "model again"
        )
    return [folder / name for name in files]


def folder_digest(folder: Path) -> str:
    """sha256 over the weights, configs and tokenizer of a checked folder: what a tuned adapter belongs to."""
    digest = hashlib.sha256()
    for path in sorted(
        {
            *shards(folder),
            *folder.glob("*.json"),
            *folder.glob("*.jinja"),
            *folder.glob("*.model"),
            *folder.glob("*.txt"),
        }
    ):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def load(folder: Path, device: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer, local; bfloat16 on a capable GPU, else float32. Raises as `check_folder`."""
    check_folder(folder)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for each file; this repository has its own
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="left", truncation_side="left", **settings
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=torch.bfloat16 if half_precision(device) else torch.float32,
            **settings,
        )
    except Exception as error:  # whatever a damaged file makes of the libraries below
        raise ValueError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {one_line(error, 200)})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{folder}: its tokenizer has no end-of-sequence token, so a rewrite would never end; set "
            "eos_token"
        )
    return model, tokenizer


def half_precision(device: str) -> bool:
    """Whether to compute in bfloat16."""
    import torch

    return device == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def request(tokenizer: PreTrainedTokenizerBase, messages: list[ChatMessage]) -> str | list[dict[str, str]]:
    """The request for TRL: messages if the tokenizer has a chat template, else text up to the completion."""
    if tokenizer.chat_template:
        return [dict(message) for message in messages]  # type: ignore[misc]
    return "\n\n".join(message["content"] for message in messages) + "\n\n"


def completion(tokenizer: PreTrainedTokenizerBase, text: str) -> str | list[dict[str, str]]:
    """A completion of `request` in the same form."""
    return [{"role": "assistant", "content": text}] if tokenizer.chat_template else text


def text_of(completion: Any) -> str:
    """The text of what TRL calls a completion: plain, or the messages of a chat."""
    return (
        completion
        if isinstance(completion, str)
        else "".join(str(message.get("content") or "") for message in completion)
    )
