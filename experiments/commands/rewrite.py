"""`nava rewrite`: short prompts to the long ones NAVA wants."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.commands.options import JsonFlag

if TYPE_CHECKING:
    from finetune.rewriter.endpoint import ChatEndpoint
    from finetune.rewriter.rewrite import Rewrite, RewriteSettings

SHOWN = 5  # rows that fell back, printed one by one

Endpoint = Annotated[
    str,
    tyro.conf.arg(metavar="URL", help="server with OpenAI's chat interface, such as vLLM's http://host:8000"),
]
Model = Annotated[str, tyro.conf.arg(help="name of the model that the server serves")]
Template = Annotated[bool, tyro.conf.arg(help="write every prompt by the embedded template; needs no model")]
Language = Annotated[
    Literal["auto", "en", "zh"],
    tyro.conf.arg(help="of the rewrite; auto: the prompt's own, zh suits published weights"),
]
Fallback = Annotated[
    Literal["template", "original"],
    tyro.conf.arg(help="used for a prompt without a valid rewrite"),
]
Token = Annotated[
    str,
    tyro.conf.arg(
        metavar="NAME", help="environment variable with the server's bearer token; without it none is sent"
    ),
]
Cache = Annotated[
    Path, tyro.conf.arg(help="valid rewrites, kept for the next run; delete it to request all again")
]


Timeout = Annotated[float, tyro.conf.arg(help="seconds for one answer, from first to last byte")]
MinStructure = Annotated[
    float, tyro.conf.arg(help="share of the form's parts (0..1) below which an answer is requested again")
]
Seed = Annotated[int, tyro.conf.arg(help="another seed gives other answers for prompts that fell back")]


def rewrite(
    prompts: Annotated[Path, tyro.conf.Positional],
    /,
    to: Path,
    endpoint: Endpoint = "",
    model: Model = "",
    template: Template = False,
    language: Language = "auto",
    fallback: Fallback = "template",
    token_variable: Token = "",
    concurrency: int = 16,
    tries: int = 4,
    timeout: Timeout = 120.0,
    max_tokens: int = 4096,
    temperature: float = 0.3,
    min_structure: MinStructure = 0.5,
    seed: Seed = 0,
    cache: Cache = Path("out/rewrites/cache.jsonl"),
    as_json: JsonFlag = False,
) -> None:
    """Rewrite the prompts of a JSONL into --to: same rows and order, other fields as they are, the source in
    meta.rewrite.

    Text between <S> and <E> is never changed: an answer that changes it is requested again, and after --tries
    the template or the original prompt is used (recorded in meta.rewrite.by and .reason). An interrupted run
    resumes; after a finished one the same command requests only the prompts that fell back. --to may hold
    earlier rewrites, which go to the trash where they differ; any other file is refused.
    """
    from finetune.rewriter.endpoint import ChatEndpoint
    from finetune.rewriter.rewrite import RewriteSettings
    from finetune.rewriter.rows import read_rows, write_rows

    if template == bool(endpoint):
        raise ValueError("give either --endpoint URL --model NAME, or --template, which needs no model")
    if cache.resolve() in (prompts.resolve(), to.resolve()):
        where = "is the file of prompts or of rewrites, and would be written into"
        raise ValueError(f"--cache {cache}: {where}; give it a file of its own")
    asking = RewriteSettings(
        language=language,
        fallback=fallback,
        concurrency=concurrency,
        num_tries=tries,
        min_structure=min_structure,
        seed=seed,
    )
    server = None
    if not template:
        server = ChatEndpoint(
            base_url=endpoint,
            model=model,
            token_variable=token_variable,
            timeout_s=timeout,
            max_tokens=max_tokens,
            temperature=temperature,
        )
    rows = read_rows(prompts, to)
    rewrites = _rewrites([row.prompt for row in rows], server, cache, asking)
    write_rows(to, rows, rewrites, model)
    _report(rewrites, [row.data_id for row in rows], to, as_json)


def _rewrites(
    prompts: Sequence[str], server: ChatEndpoint | None, cache: Path, settings: RewriteSettings
) -> list[Rewrite]:
    """By the endpoint through the cache, or by the template where there is none."""
    from finetune.rewriter.cache import RewriteCache
    from finetune.rewriter.rewrite import rewrite_all, without_model

    if server is None:
        return [without_model(prompt, settings) for prompt in prompts]
    kept = RewriteCache(cache)
    try:
        return rewrite_all(prompts, server, kept, settings)
    finally:
        kept.close()


def _report(rewrites: Sequence[Rewrite], names: Sequence[str], to: Path, as_json: bool) -> None:
    """Who wrote how many rows, and the first that fell back with their reasons."""
    counts = Counter(rewrite.by for rewrite in rewrites)
    failed = [(name, rewrite) for name, rewrite in zip(names, rewrites, strict=True) if rewrite.reason]
    for name, rewrite in failed[:SHOWN]:
        print(f"{name}: by {rewrite.by}, {rewrite.tries} tries, last: {rewrite.reason}", file=sys.stderr)
    if len(failed) > SHOWN:
        print(
            f"... and {len(failed) - SHOWN} more; meta.rewrite.reason of each row says why", file=sys.stderr
        )
    cached = sum(rewrite.cached for rewrite in rewrites)
    if as_json:
        print(
            json.dumps(
                {"rows": len(rewrites), **counts, "fell_back": len(failed), "cached": cached, "to": str(to)},
                indent=1,
            )
        )
        return
    by = ", ".join(
        f"{count} by {'the prompt as it is' if name == 'original' else name}"
        for name, count in sorted(counts.items())
    )
    print(
        f"{len(rewrites)} prompts: {by}{f' ({cached} of an earlier run)' if cached else ''}; {len(failed)} "
        f"fell back\nrewrites  {to}"
    )
