"""Prompts with speech spans, `A man says: <S>hello<E>.`: parse, validate, bind reference voices to spans.

Format: NAVA's public inference JSONL (nava.md sections 2 and 5).
"""

from pretrain.prompt.marks import SPEECH_END, SPEECH_START, TIMBRE
from pretrain.prompt.parsed import ParsedPrompt, parse, with_timbre_tokens
from pretrain.prompt.read import check_files, check_plain, check_prompts, read_prompts, readable_prompts
from pretrain.prompt.rows import PromptRow, size_problem
from pretrain.prompt.spans import Span, SpanError

__all__ = [
    "SPEECH_END",
    "SPEECH_START",
    "TIMBRE",
    "ParsedPrompt",
    "PromptRow",
    "Span",
    "SpanError",
    "check_files",
    "check_plain",
    "check_prompts",
    "parse",
    "read_prompts",
    "readable_prompts",
    "size_problem",
    "with_timbre_tokens",
]
