"""`nava VERB ...`: one verb per kind of work. A verb's module is imported only when the verb is used, so
`--help` is quick."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.allowance import allow_named, take_plugins
from experiments.errors import USER_ERROR, one_line_errors
from pretrain.terminal import escaped_output


@dataclass(frozen=True)
class Verb:
    """MODULE.FUNCTION of experiments.commands, what it does, and the arguments of one example."""

    name: str
    function: str
    summary: str
    arguments: str = ""

    @property
    def example(self) -> str:
        return f"nava {self.name} {self.arguments}".rstrip()


_VERBS = (
    Verb("demo", "demo.demo", "run the whole pipeline and report how good the clips are"),
    Verb("doctor", "look.doctor", "versions, processor, speed, memory, disk, and what is missing"),
    Verb("corpus", "pipeline.corpus", "render the talking-face corpus", "mini --set corpus.seed=1"),
    Verb(
        "prepare",
        "prepare.prepare",
        "raw videos to training rows: clips, speech with times, voices",
        "my_videos --to my_set",
    ),
    Verb(
        "curate",
        "curate.curate",
        "choose clips that stand for all, good ones first",
        "mini --clips my_set --to my_choice --set curate.budget=500",
    ),
    Verb("codec", "pipeline.codec", "fit the linear codecs on the corpus", "mini"),
    Verb(
        "codec import",
        "codec.import_published",
        "make a codec of published weights",
        "--video wan2.2 --audio ltx-2.3 --text wan2.2 --speaker redimnet.pt --to out/codec",
    ),
    Verb(
        "encode",
        "encode.encode",
        "turn clips, prompts and voices into latents",
        "mini --manifest a.jsonl --nproc 2",
    ),
    Verb("pretrain", "pretrain.pretrain", "train the stages (starts torchrun itself)", "mini --nproc 2"),
    Verb(
        "finetune",
        "finetune.finetune",
        "fine-tune a model on your clips, by LoRA or all weights",
        "mini --clips my_clips --to my/voice",
    ),
    Verb(
        "import",
        "convert.import_published",
        "published weights to a model folder",
        "wan2.2 Wan2.2-TI2V-5B --to out/warm",
    ),
    Verb(
        "export",
        "convert.export_published",
        "a model folder to published weights",
        "nava out/warm --to NAVA.safetensors",
    ),
    Verb(
        "export diffusers",
        "convert.export_diffusers",
        "a model and its codec to a pipeline of diffusers",
        "--model out/align/model --to out/diffusers",
    ),
    Verb(
        "rewrite",
        "rewrite.rewrite",
        "short prompts to long ones, speech kept",
        "my.jsonl --to long.jsonl --template",
    ),
    Verb(
        "generate",
        "generate.generate",
        "prompts JSONL -> mp4 with sound and wav",
        "my_prompts.jsonl --to my_clips",
    ),
    Verb("syncnet", "pipeline.syncnet", "train the sync reward and its judge", "mini"),
    Verb(
        "rollout", "pipeline.rollout", "several clips of each prompt, to vote on", "mini --to my_clips --mp4"
    ),
    Verb("curate prompts", "pipeline.curate_prompts", "curate the prompts that alignment trains on", "mini"),
    Verb("votes", "pipeline.votes", "simulated raters vote on the rollouts", "mini"),
    Verb("align", "align.align", "refine the model with rewards or votes", "mini --set align.nft.rounds=4"),
    Verb(
        "align report",
        "align_report.align_report",
        "before and after an alignment, by rewards and judges",
        "out/align --judges sync_judge --set sync_judge.model=out/syncnet/judge",
    ),
    Verb("evaluate", "pipeline.evaluate", "measure real, codec and generated clips side by side", "mini"),
    Verb(
        "evaluate verse-bench",
        "benchmark.verse_bench",
        "a model, or any clips, on Verse-Bench",
        "verse_bench --model out/align/model",
    ),
    Verb(
        "evaluate seed-tts",
        "benchmark.seed_tts",
        "a model, or any speech, on Seed-TTS eval",
        "seedtts_testset --model out/align/model",
    ),
    Verb(
        "evaluate javisbench",
        "benchmark.javisbench",
        "a model, or any clips, on JavisBench",
        "JavisBench --mini --model out/align/model",
    ),
    Verb(
        "score",
        "score.score",
        "score any clips with rewards of your choice",
        "my_clips --rewards snr_estimate_db",
    ),
    Verb(
        "compare",
        "compare.compare",
        "compare two scored sets pairwise, with intervals",
        "a.jsonl b.jsonl",
    ),
    Verb("serve rewards", "serve.rewards", "score clips over HTTP", "--rewards sync_mini --root out"),
    Verb("serve generate", "serve.generate", "make clips over HTTP", "--model out/align/model --gpus 1"),
    Verb(
        "web",
        "web.web",
        "a page to make, hear and compare clips of a service",
        "http://127.0.0.1:8124 --token-file my.token",
    ),
    Verb("serve tokens add", "serve.tokens_add", "an access token of the service", "team --per-minute 60"),
    Verb("serve tokens list", "serve.tokens_list", "access tokens of the service, without the tokens"),
    Verb("serve tokens revoke", "serve.tokens_revoke", "take an access token away", "team"),
    Verb("report", "pipeline.report", "write reports/demo.html", "mini"),
    Verb(
        "study paradigms",
        "study.paradigms",
        "compare NAVA with a dual tower and a unified model at equal cost",
    ),
    Verb(
        "study claims",
        "study.claims",
        "the paper's claims, each asked at this size, with a computed verdict",
        "--rows guidance_text guidance_align",
    ),
    Verb("study objectives", "study.objectives", "the objectives of alignment at one rollout budget"),
    Verb("study seeds", "study.seeds", "align from several seeds, evaluated by the judges", "--seeds 3"),
    Verb(
        "gsb serve",
        "gsb_serve.serve",
        "pages on which people vote, blind",
        "A=clips/a B=clips/b --votes surveys/votes.db",
    ),
    Verb(
        "gsb stats",
        "gsb.stats",
        "statistics of votes on clips: win, tie, lose, strengths, raters",
        "votes.jsonl",
    ),
    Verb(
        "gsb join",
        "gsb_join.join",
        "clips of several models as one store, whose votes can train",
        "base=clips/base ours=clips/ours --to clips/both",
    ),
    Verb(
        "gsb export",
        "gsb.export",
        "votes to preference pairs",
        "votes.jsonl --clips my_clips",
    ),
    Verb(
        "gsb fit",
        "gsb.fit",
        "learn a reward from votes",
        "votes.jsonl --scores a=a.jsonl b=b.jsonl --features NAME",
    ),
    Verb("rewriter grpo", "rewriter.grpo", "tune the prompt rewriter by rewards", "my_lm my_prompts.jsonl"),
    Verb(
        "rewriter dpo",
        "rewriter.dpo",
        "tune the prompt rewriter by votes",
        "my_lm votes.jsonl --rewrites a=a.jsonl b=b.jsonl",
    ),
    Verb(
        "lineage",
        "look.lineage",
        "from a clip, checkpoint or run back to data, code and parents",
        "out/generated",
    ),
    Verb("prompt check", "look.prompt_check", "check a prompts JSONL file", "my_prompts.jsonl --files"),
    Verb("plan", "plan.plan", "parameters, FLOPs, memory per GPU and days of a model", "nava_6b --gpus 128"),
    Verb(
        "launch node",
        "launch.node",
        "train or fine-tune on this machine by a script",
        "nava_6b --gpus-per-node 8 --dry-run",
    ),
    Verb(
        "launch slurm",
        "launch.slurm",
        "train or fine-tune under Slurm, requeued when preempted",
        "nava_6b --nodes 16 --dry-run",
    ),
    Verb(
        "launch kubernetes",
        "launch.kubernetes",
        "train or fine-tune as a Kubeflow TrainJob",
        "nava_6b --nodes 16 --image IMAGE --dry-run",
    ),
    Verb("submit", "submit.submit", "run a stage of the pipeline as a Ray job", "mini --stage align"),
    Verb("trash list", "trash.list_trash", "what had to make room, with sizes"),
    Verb("trash empty", "trash.empty_trash", "delete what had to make room", "--older-than 30d"),
    Verb("plugins", "plugins.list_plugins", "modules that names of files may import", "rubric.yaml"),
    Verb("tracking flush", "look.tracking_flush", "send runs that MLflow has not got yet"),
    Verb("ui", "look.ui", "open the MLflow user interface on this repository's runs", "--port 5000"),
)
VERBS: dict[str, Verb] = {verb.name: verb for verb in _VERBS}


def help_text() -> str:
    """The page `nava --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    examples = "\n".join(f"  {verb.example}" for verb in VERBS.values())
    return f"""usage: nava VERB [options]      nava VERB --help says more about one verb

{verbs}

One example for each:
{examples}

--debug (anywhere) shows the traceback behind an error. Errors of yours end with one line and exit code 2.
--plugins MODULE[,MODULE] (anywhere) lets rubrics, recipes and params.yaml name classes of these modules.
"""


def find_verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(verb, its arguments); a verb may be up to three words. Raises ValueError naming the nearest verb."""
    for words in (3, 2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            return name, list(arguments[words:])
    second = [name for name in VERBS if name.split()[0] == arguments[0] and " " in name]
    if second and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        raise ValueError(f"{arguments[0]}: say what; valid: {', '.join(second)}")
    close = difflib.get_close_matches(" ".join(arguments[:2]), VERBS, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown verb {arguments[0]!r}; did you mean {close!r}? valid: {', '.join(VERBS)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `nava`; the exit code is 0, 1 (a check found something), 2 (a wrong input), 3 (a
    quality gate failed) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0 if arguments else USER_ERROR
    with one_line_errors(debug):
        arguments = take_plugins(arguments)
        name, rest = find_verb(arguments)
        verb = VERBS[name]
        module, _, attribute = verb.function.partition(".")
        function = getattr(importlib.import_module(f"experiments.commands.{module}"), attribute)
        import tyro

        allow_named(rest, with_recipe="recipe" in inspect.signature(function).parameters)
        description = f"{inspect.cleandoc(function.__doc__ or '')}\n\nExample: {verb.example}"
        return (
            tyro.cli(
                _escaping(function),
                prog=f"nava {name}",
                description=description,
                args=rest,
                use_underscores=False,
            )
            or 0
        )
    return USER_ERROR  # pragma: no cover (one_line_errors leaves by SystemExit)


def _escaping(function: Callable[..., Any]) -> Callable[..., Any]:
    """The verb with its output escaped; tyro's own help keeps its colours."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with escaped_output():
            return function(*arguments, **options)

    return run


if __name__ == "__main__":
    sys.exit(main())
