"""A small language model that rewrites prompts with mistakes, made in a minute on one core: something for
tuning to improve.

It is taught answers of the template rewriter in which parts are missing or exchanged and speech is dropped,
doubled or made up, each with a chance of its own; so it knows the right answers too, and gives them now and
then.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.rewriter.form import ENGLISH, messages
from finetune.rewriter.template import by_template
from finetune.rewriter.votes import as_answer
from pretrain.progress import track
from pretrain.prompt import PromptRow, parse

WHO = ("A man", "A woman", "A boy", "A girl", "An old farmer", "A young teacher", "A nurse", "A cook")
LOOKS = (
    "with red hair",
    "in a green coat",
    "with grey hair",
    "in a blue shirt",
    "with glasses",
    "in a black hat",
)
WHERE = ("in a kitchen", "on a beach", "in a park", "at a window", "in a workshop", "on a train")
WORDS = (
    "hello",
    "good morning",
    "come with me",
    "it is late",
    "look at this",
    "thank you",
    "never again",
    "seven apples",
)
ASK, ANSWER, END = "<ask>", "<answer>", "<end>"
CHAT = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    + ASK
    + "{{ message.content }}"
    + ANSWER
    + "{% elif message.role == 'assistant' %}{{ message.content }}"
    + END
    + "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Student:
    """Sizes of the model and how long it is taught. Chances of a mistake: `drop` of each part, `swap` of two
    parts, `speech`."""

    width: int = 128
    layers: int = 2
    steps: int = 150
    batch: int = 24
    learning_rate: float = 3e-3
    drop: float = 0.3
    swap: float = 0.15
    speech: float = 0.3
    seed: int = 0


def short_prompts(count: int, seed: int) -> list[PromptRow]:
    """Different prompts of nobody, one or two speaking."""
    draw, rows = random.Random(seed), dict[str, PromptRow]()
    while len(rows) < count:
        text = f"{draw.choice(WHO)} {draw.choice(LOOKS)} {draw.choice(WHERE)}"
        for number in range(draw.choice((0, 1, 1, 2))):
            text += f"{' and then' if number else ''} says <S>{draw.choice(WORDS)}<E>"
        rows.setdefault(text, PromptRow(parse(text + "."), None, (), None, f"p{len(rows)}"))
    return list(rows.values())


def faulty(source: str, draw: random.Random, student: Student) -> str:
    """An answer of the template rewriter with mistakes."""
    cues = "|".join(re.escape(part.cue) for part in ENGLISH.parts)
    parts = re.split(rf"(?:\A|(?<=[.!?] ))(?={cues})", as_answer(source, by_template(source)))
    parts = [part.strip() for part in parts if part.strip() and draw.random() >= student.drop]
    if len(parts) > 1 and draw.random() < student.swap:
        first, second = draw.sample(range(len(parts)), 2)
        parts[first], parts[second] = parts[second], parts[first]
    text = " ".join(parts)
    if draw.random() < student.speech:
        wrong = draw.choice(("", "[SPEECH 1] [SPEECH 1]", "<S>" + draw.choice(WORDS) + "<E>"))
        text = text.replace("[SPEECH 1]", wrong)
    return text


def make_student(folder: Path, student: Student) -> Path:
    """Write the model's folder (safetensors and tokenizer); returns it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    draw = random.Random(student.seed)
    sources = [row.prompt.text for row in short_prompts(256, student.seed + 1)]
    tokenizer = _tokenizer(
        [text for source in sources for text in (messages(source)[-1]["content"], by_template(source))]
    )
    torch.manual_seed(student.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=student.width,
        intermediate_size=2 * student.width,
        num_hidden_layers=student.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=student.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, student.learning_rate, max(student.steps, 2))
    for _ in track(range(student.steps), student.steps, "lessons of the student") if student.steps else ():
        chosen = [draw.choice(sources) for _ in range(student.batch)]
        loss = _loss(model, tokenizer, [(source, faulty(source, draw, student)) for source in chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(
    folder: Path, rows: Sequence[PromptRow], per_prompt: int, seed: int, tokens: int = 200
) -> list[list[str]]:
    """`per_prompt` sampled answers to each prompt, at temperature 1."""
    from finetune.rewriter.language_model import load

    model, tokenizer = load(folder, "cpu")
    torch.manual_seed(seed)
    answered: list[list[str]] = []
    for row in track(rows, len(rows), f"prompts answered by {folder.name}"):
        asked: Any = tokenizer(ASK + messages(row.prompt.text)[-1]["content"] + ANSWER, return_tensors="pt")
        with torch.no_grad():
            made: Any = model.generate(  # type: ignore[operator]
                **asked,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                num_return_sequences=per_prompt,
                max_new_tokens=tokens,
            )
        answered.append(
            tokenizer.batch_decode(made[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        )
    return answered


def _tokenizer(texts: Sequence[str]) -> Any:
    """Byte-level BPE of these texts: any text comes back as it was."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bare.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<pad>", ASK, ANSWER, END]
    trainer = trainers.BpeTrainer(
        vocab_size=768, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bare.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", eos_token=END, padding_side="left"
    )
    fast.chat_template = CHAT
    return fast


def _loss(model: Any, tokenizer: Any, lessons: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Cross entropy of the answers alone."""
    asked = [tokenizer(ASK + messages(source)[-1]["content"] + ANSWER).input_ids for source, _ in lessons]
    told = [tokenizer(text + END).input_ids for _, text in lessons]
    width = max(len(question) + len(text) for question, text in zip(asked, told, strict=True))
    ids = torch.full((len(lessons), width), tokenizer.pad_token_id)
    labels = torch.full((len(lessons), width), -100)
    for place, (question, text) in enumerate(zip(asked, told, strict=True)):
        ids[place, : len(question) + len(text)] = torch.tensor([*question, *text])
        labels[place, len(question) : len(question) + len(text)] = torch.tensor(text)
    return model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
