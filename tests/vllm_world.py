"""A real vLLM server on the CPU, with a model of a few kilobytes whose every answer is one fixed text.

The model is a chain: attention and MLP add nothing, each token of the answer is a one-hot embedding, and the
output row of the next token is that vector. So it is loaded, batched and sampled as any model, and what it
says is known.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

START, END = "<|say|>", "<|end|>"
WIDTH, GAIN = 64, 40.0
READY_S = 240.0


def write_chain_model(folder: Path, pieces: list[str]) -> None:
    """A Qwen3 with a byte-level tokenizer that answers any chat with `pieces`, one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({sign: number for number, sign in enumerate(alphabet)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token=END, pad_token=END)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in (START, *pieces)])
    tokenizer.chat_template = "{{ messages[-1].content }}" + START
    chain = tokenizer.convert_tokens_to_ids([START, *pieces, END])
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
    )
    model: Any = Qwen3ForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, model.lm_head.weight):
            weight.zero_()
        for number, (token, following) in enumerate(pairwise(chain)):
            vector = torch.nn.functional.one_hot(torch.tensor(number), WIDTH).float()
            model.model.embed_tokens.weight[token] = vector
            model.lm_head.weight[following] = GAIN * vector
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def vllm_server(environment: Path, model: Path, name: str, token: str, log: Path):
    """(address, process) of a server that is ready; its process group is killed at the end. Raises
    RuntimeError if it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(environment / "bin" / "vllm"),
        "serve",
        str(model),
        "--served-model-name",
        name,
        "--host",
        "127.0.0.1",
    ]
    command += [
        "--port",
        str(port),
        "--max-model-len",
        "1024",
        "--enforce-eager",
        "--max-num-seqs",
        "8",
        "--dtype",
        "float32",
    ]
    quiet = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_API_KEY": token,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | quiet, start_new_session=True
        )
    try:
        until = time.monotonic() + READY_S
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """Kill -9 of the server and of all it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def metric(url: str, name: str) -> float:
    """Sum of a counter over its labels, from the server's Prometheus page."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
