"""`nava VERB ...`: one verb per kind of work. A verb's module is imported only when the verb is used, so
`--help` is quick."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.errors import USER_ERROR, one_line_errors


@dataclass(frozen=True)
class Verb:
    """Where a verb's function lives (module of experiments.commands, function), what it does and one
    example."""

    module: str
    function: str
    summary: str
    example: str


VERBS: dict[str, Verb] = {
    "demo": Verb("demo", "demo", "run the whole pipeline and show what the clips are worth", "nava demo"),
    "doctor": Verb(
        "look", "doctor", "versions, processor, speed, memory, disk, and what is missing", "nava doctor"
    ),
    "corpus": Verb(
        "pipeline", "corpus", "render the talking-face corpus", "nava corpus mini --set corpus.seed=1"
    ),
    "curate": Verb("pipeline", "curate", "choose the curated high-quality pairs", "nava curate mini"),
    "codec": Verb("pipeline", "codec", "fit the linear codecs on the corpus", "nava codec mini"),
    "codec import": Verb(
        "codec",
        "import_published",
        "make a codec of published weights",
        "nava codec import --video wan2.2 --audio ltx-2.3 --text wan2.2 --speaker redimnet.pt --to out/codec",
    ),
    "encode": Verb(
        "encode",
        "encode",
        "turn clips, prompts and voices into latents",
        "nava encode mini --manifest a.jsonl --nproc 2",
    ),
    "pretrain": Verb(
        "pretrain", "pretrain", "train the stages (starts torchrun itself)", "nava pretrain mini --nproc 2"
    ),
    "import": Verb(
        "convert",
        "import_published",
        "published weights to a model folder",
        "nava import wan2.2 Wan2.2-TI2V-5B --to out/warm",
    ),
    "export": Verb(
        "convert",
        "export_published",
        "a model folder to published weights",
        "nava export nava out/warm --to NAVA.safetensors",
    ),
    "rewrite": Verb(
        "rewrite",
        "rewrite",
        "short prompts to long ones, speech kept",
        "nava rewrite my.jsonl --to long.jsonl --template",
    ),
    "generate": Verb(
        "generate",
        "generate",
        "prompts JSONL -> mp4 with sound and wav",
        "nava generate my_prompts.jsonl --to my_clips",
    ),
    "syncnet": Verb("pipeline", "syncnet", "train the sync reward and its judge", "nava syncnet mini"),
    "rollout": Verb(
        "pipeline",
        "rollout",
        "several clips of each prompt, to vote on",
        "nava rollout mini --set rollout.seed=1",
    ),
    "curate prompts": Verb(
        "pipeline",
        "curate_prompts",
        "choose the prompts that alignment trains on",
        "nava curate prompts mini",
    ),
    "votes": Verb("pipeline", "votes", "have a simulated panel vote on the rollouts", "nava votes mini"),
    "align": Verb(
        "align", "align", "refine the model with rewards or votes", "nava align mini --set align.nft.rounds=4"
    ),
    "evaluate": Verb(
        "pipeline", "evaluate", "measure real, codec and generated clips side by side", "nava evaluate mini"
    ),
    "evaluate verse-bench": Verb(
        "benchmark",
        "verse_bench",
        "measure any clips on Verse-Bench",
        "nava evaluate verse-bench verse_bench",
    ),
    "evaluate seed-tts": Verb(
        "benchmark",
        "seed_tts",
        "measure any speech on Seed-TTS eval",
        "nava evaluate seed-tts seedtts_testset",
    ),
    "score": Verb(
        "score",
        "score",
        "score any clips with rewards of your choice",
        "nava score my_clips --rewards snr_estimate_db",
    ),
    "serve rewards": Verb(
        "serve",
        "rewards",
        "score clips for others, over HTTP",
        "nava serve rewards --rewards sync_mini --root out",
    ),
    "report": Verb("pipeline", "report", "write reports/demo.html", "nava report mini"),
    "study paradigms": Verb(
        "study", "paradigms", "compare NAVA with its two rivals on equal terms", "nava study paradigms"
    ),
    "study objectives": Verb(
        "study", "objectives", "four objectives of alignment at one rollout budget", "nava study objectives"
    ),
    "study seeds": Verb(
        "study", "seeds", "align from several seeds, held against the judges", "nava study seeds --seeds 3"
    ),
    "gsb stats": Verb(
        "gsb",
        "stats",
        "what votes on clips say: win, tie, lose, strengths, raters",
        "nava gsb stats votes.jsonl",
    ),
    "gsb export": Verb(
        "gsb",
        "export",
        "votes to preference pairs",
        "nava gsb export votes.jsonl --clips nava=clips/a base=clips/b",
    ),
    "gsb fit": Verb(
        "gsb",
        "fit",
        "learn a reward from votes",
        "nava gsb fit votes.jsonl --scores a=a.jsonl b=b.jsonl --features NAME",
    ),
    "rewriter grpo": Verb(
        "rewriter", "grpo", "tune the prompt rewriter by rewards", "nava rewriter grpo my_lm my_prompts.jsonl"
    ),
    "rewriter dpo": Verb(
        "rewriter",
        "dpo",
        "tune it by votes",
        "nava rewriter dpo my_lm votes.jsonl --rewrites a=a.jsonl b=b.jsonl",
    ),
    "lineage": Verb(
        "look",
        "lineage",
        "from a clip, checkpoint or run back to data, code and parents",
        "nava lineage out/generated",
    ),
    "prompt check": Verb(
        "look", "prompt_check", "check a prompts JSONL file", "nava prompt check my_prompts.jsonl --files"
    ),
    "plan": Verb(
        "plan",
        "plan",
        "parameters, FLOPs, memory per GPU and days of a model",
        "nava plan nava_6b --gpus 128",
    ),
    "launch node": Verb(
        "launch",
        "node",
        "train on this machine by a script",
        "nava launch node nava_6b --gpus-per-node 8 --dry-run",
    ),
    "launch slurm": Verb(
        "launch",
        "slurm",
        "train under Slurm, requeued when preempted",
        "nava launch slurm nava_6b --nodes 16 --dry-run",
    ),
    "launch kubernetes": Verb(
        "launch",
        "kubernetes",
        "train as a Kubeflow TrainJob",
        "nava launch kubernetes nava_6b --nodes 16 --image IMAGE --dry-run",
    ),
    "submit": Verb(
        "submit", "submit", "run a stage of the pipeline as a Ray job", "nava submit mini --stage align"
    ),
    "tracking flush": Verb(
        "look", "tracking_flush", "send runs that MLflow has not got yet", "nava tracking flush"
    ),
    "ui": Verb(
        "look", "ui", "open the MLflow user interface on this repository's runs", "nava ui --port 5000"
    ),
}


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
"""


def find_verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(verb, its arguments); a verb may be two words. Raises ValueError naming the nearest verb."""
    for words in (2, 1):
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
        name, rest = find_verb(arguments)
        verb = VERBS[name]
        function = getattr(importlib.import_module(f"experiments.commands.{verb.module}"), verb.function)
        import tyro

        description = f"{inspect.cleandoc(function.__doc__ or '')}\n\nExample: {verb.example}"
        return (
            tyro.cli(function, prog=f"nava {name}", description=description, args=rest, use_underscores=False)
            or 0
        )
    return USER_ERROR  # pragma: no cover (one_line_errors leaves by SystemExit)


if __name__ == "__main__":
    sys.exit(main())
