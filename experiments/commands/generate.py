"""`nava generate`: prompts in the public inference format to clips."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.commands.align import RayCluster, address_of
from experiments.commands.options import InsecureRay, SetOptions, recipe_for

if TYPE_CHECKING:
    from finetune.adapters import MergedAdapters
    from pretrain.generate import Spread
    from pretrain.generation.config import GenerateConfig
    from pretrain.model.checkpoint import WeightsName

ModelToUse = Annotated[
    Path,
    tyro.conf.arg(
        metavar="FOLDER",
        help="exported model: a folder, or models:/NAME@ALIAS or /VERSION of MLflow's registry",
    ),
]
CodecOfModel = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FOLDER", help="codec, given likewise; default out/codec, or that of a registered model"
    ),
]
AdaptersToUse = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="FOLDER[=SCALE]",
        help="LoRA adapter of that model, of `nava finetune` or `nava align`, merged in memory; may be "
        "repeated, their updates add up; a scale of 0 changes nothing",
    ),
]
MakingOptions = Annotated["Making", tyro.conf.arg(name="")]
SpreadOptions = Annotated["Spreading", tyro.conf.arg(name="")]
ClipsMoveAside = Annotated[
    bool, tyro.conf.arg(help="an unfinished folder that was begun with something else goes to the trash")
]


@dataclass(frozen=True)
class Making:
    """What is made; each in place of the recipe's."""

    task: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="T2AV|TI2AV|TIA2AV|T2A|T2V",
            help="of rows that do not say: T2A makes sound alone and T2V pictures alone, without any forward "
            "of the other; default: picture and sound from all that a row gives",
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        tyro.conf.arg(
            help="of rows that do not say: guidance by text leads away from it instead of from no text"
        ),
    ] = None
    fit: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="crop|pad|stretch|exact",
            help="first frames of another size: filled and cut, whole with black bars, stretched, or refused",
        ),
    ] = None
    duration: Annotated[
        float | None, tyro.conf.arg(help="seconds of clips whose rows give no num_frames")
    ] = None
    steps: Annotated[int | None, tyro.conf.arg(help="of the sampler")] = None
    solver: Annotated[str | None, tyro.conf.arg(metavar="euler|unipc", help="of the sampler")] = None
    guidance: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            metavar="NAME=SCALE",
            help="how far to go beyond the fully conditioned velocity: text_video, text_audio, align_video, "
            "align_audio, timbre_video or timbre_audio; may be repeated, 0 costs nothing",
        ),
    ] = ()
    seed: Annotated[int | None, tyro.conf.arg(help="of the noise, of rows that do not say")] = None
    seeds: Annotated[
        str | None,
        tyro.conf.arg(metavar="N,N,...", help="a clip NAME-sN of each prompt for each of these seeds"),
    ] = None

    def settings(self, fps: float) -> tuple[str, ...]:
        """As overrides of a recipe. Raises ValueError in one line."""
        plain = ("task", "negative_prompt", "fit", "seed")
        given = {name: getattr(self, name) for name in plain}
        given |= {"sampler.steps": self.steps, "sampler.solver": self.solver}
        if self.duration is not None:
            given["num_frames"] = frames_of(self.duration, fps)
        if self.seeds is not None:
            numbers = self.seeds.split(",")
            if not all(number.strip().isdecimal() for number in numbers):
                raise ValueError(f"--seeds: expected whole numbers such as 0,1,2, got {self.seeds!r}")
            given["seeds"] = f"[{', '.join(str(int(number)) for number in numbers)}]"
        for text in self.guidance:
            name, equals, scale = text.partition("=")
            if not equals:
                raise ValueError(f"--guidance: expected NAME=SCALE such as text_audio=3, got {text!r}")
            given[f"sampler.guidance.{name}"] = scale
        return tuple(
            f"generate.{name}={_quoted(name, value)}" for name, value in given.items() if value is not None
        )


@dataclass(frozen=True)
class Spreading:
    """Who makes the clips; they are the same, whoever does."""

    nproc: Annotated[
        int, tyro.conf.arg(help="ranks of this machine, a whole model each; a dead one is replaced")
    ] = 1
    shard: Annotated[bool, tyro.conf.arg(help="the ranks hold one model together (FSDP2)")] = False
    context: Annotated[
        int, tyro.conf.arg(help="ranks that hold a clip's tokens together, for clips too long for one GPU")
    ] = 1
    ray: RayCluster = None
    insecure_ray: InsecureRay = False

    def spread(self, ray: Any) -> Spread:
        """ray: the recipe's section. Raises ValueError in one line for options that exclude each other."""
        from pretrain.generate import HERE

        address = address_of(self.ray)
        ranks = self.nproc != 1 or self.shard or self.context != 1
        if address and ranks:
            raise ValueError("--ray has workers of its own (ray.rollout.workers); leave out --nproc and such")
        if address:
            from orchestration.generation import on_ray

            return on_ray(ray, address, self.insecure_ray)
        if not ranks:
            return HERE
        from pretrain.generation.ranks import on_ranks

        return on_ranks(self.nproc, self.shard, self.context)


def generate(
    prompts: Annotated[Path, tyro.conf.Positional],
    /,
    to: Annotated[str, tyro.conf.arg(metavar="FOLDER|URL", help="of the clips")] = "clips",
    recipe: str = "mini",
    model: ModelToUse = Path("out/pretrain/stage3/model"),
    codec: CodecOfModel = None,
    adapter: AdaptersToUse = (),
    limit: Annotated[int | None, tyro.conf.arg(help="number of rows")] = None,
    making: MakingOptions = Making(),
    candidates: Annotated[
        int | None,
        tyro.conf.arg(
            help="clips of each prompt, made into TO-candidates, of which --rubric chooses the best into TO"
        ),
    ] = None,
    rubric: Annotated[
        Path | None, tyro.conf.arg(metavar="YAML", help="rubric of `nava score` for --candidates")
    ] = None,
    spreading: SpreadOptions = Spreading(),
    settings: SetOptions = (),
    move_aside: ClipsMoveAside = False,
) -> None:
    """Generate one mp4 with sound and one wav for each row of a prompts JSONL file ({"prompt", "image_path",
    "spk_wavs", "task", "seed", "negative_prompt", ...}).

    Each clip is written whole as it is done, into --to, which knows what it is made with: the same command
    after a kill makes what is missing, byte for byte what an undisturbed run makes. A folder that is finished
    with something else goes to the trash first, one that is not is refused. All rows are checked as by `nava
    prompt check --files` before the model is loaded; words, lengths and sizes that the model was never
    trained on are warned of. Model, codec and prompts are recorded: `nava lineage CLIP` names them.

      nava generate prompts.jsonl --adapter my/voice/adapter=0.8 --adapter my/look/adapter
      nava generate prompts.jsonl --task T2A --duration 4 --to sounds
      nava generate prompts.jsonl --seeds 0,1,2,3 --guidance text_audio=3 --steps 30 --to s3://bucket/clips
      nava generate prompts.jsonl --nproc 8             # 8 GPUs, a model each
      nava generate prompts.jsonl --nproc 8 --shard     # one model over 8 GPUs
      nava generate prompts.jsonl --nproc 2 --context 2 # a long clip over 2 GPUs
      nava generate prompts.jsonl --ray head:6379 --set ray.rollout.workers=64

    A registered model and its codec are fetched once, so that any folder will do: --model models:/NAME@ALIAS
    """
    _check_given(prompts, limit)
    loaded = recipe_for(recipe, settings)
    if asked := making.settings(loaded.generate.fps):
        loaded = recipe_for(recipe, (*settings, *asked))
    spread, config = spreading.spread(loaded.ray), loaded.generate
    if candidates is not None or rubric is not None:
        config = _with_candidates(config, candidates, rubric, to)
    asked, tags = asked_clips(prompts, model, codec, adapter, config, limit)
    tags |= {"nava.recipe": recipe, "nava.output": to}
    more = {"adapters": list(adapter)} if adapter else {}
    if rubric is None:
        from pretrain.storage import place

        make_clips(asked, place(to), spread, move_aside, tags, more)
    else:
        _best_of(asked, Path(to), rubric, spread, move_aside, tags, more)


def _check_given(prompts: Path, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    _require(prompts, "give a prompts JSONL file")


def asked_clips(
    prompts: Path,
    model: Path,
    codec: Path | None,
    adapter: Sequence[str],
    config: GenerateConfig,
    limit: int | None,
) -> tuple[ClipsAsked, dict[str, str]]:
    """The inputs, fetched where the registry names them, and tags that say so. Raises in one line."""
    from experiments.runs.registry import model_and_codec, registered_tags

    model, codec = model_and_codec(model, codec, Path("out"), Path("out/codec"))
    _require(model, "train one (`nava demo`) or give --model")
    _require(codec, "fit one or give --codec")
    change = _adapters(adapter, model, config.weights)
    return ClipsAsked(prompts, model, codec, config, change, limit), dict(registered_tags(model, codec))


def _best_of(
    asked: ClipsAsked,
    to: Path,
    rubric: Path,
    spread: Spread,
    aside: bool,
    tags: Mapping[str, str],
    more: Mapping[str, Any],
) -> None:
    """Make the candidates, score them, and fill `to` with the best."""
    from experiments.candidates import beside, choose, told

    candidates = beside(to, "candidates")
    make_clips(asked, candidates, spread, aside, {**tags, "nava.output": str(candidates)}, more)
    for line in told(choose(candidates, rubric, to), len(asked.config.seeds)):
        print(line)
    print(f"clips in {to}")


def _with_candidates(
    config: GenerateConfig, candidates: int | None, rubric: Path | None, to: str
) -> GenerateConfig:
    """Raises in one line where --candidates and --rubric do not make sense."""
    from experiments.candidates import check_choice, with_candidates

    if candidates is None or rubric is None:
        raise ValueError("--candidates and --rubric go together: how many, and what chooses one of them")
    if "://" in to:
        raise ValueError(f"--to {to}: candidates are scored on this machine; give a folder")
    asked = with_candidates(config, candidates)
    check_choice(Path(to), rubric, candidates)
    return asked


@dataclass(frozen=True)
class ClipsAsked:
    """What `nava generate` was asked for."""

    prompts: Path
    model: Path
    codec: Path
    config: GenerateConfig
    change: MergedAdapters
    limit: int | None


def make_clips(
    asked: ClipsAsked, to: Path, spread: Spread, aside: bool, tags: Mapping[str, str], more: Mapping[str, Any]
) -> None:
    """Warn, make the clips, and record the run."""
    import pretrain.generate
    from experiments.layout import Layout
    from experiments.prompt_words import print_warnings, word_warnings
    from experiments.recipes.load import as_plain
    from experiments.runs.inputs import digests_of_inputs
    from experiments.runs.run import record_run
    from pretrain.generation.beyond import beyond
    from pretrain.generation.jobs import clip_jobs
    from pretrain.model.checkpoint import read_model_folder
    from pretrain.prompt import read_prompts
    from pretrain.storage import is_remote

    prompts, model, codec, config, limit = asked.prompts, asked.model, asked.codec, asked.config, asked.limit
    asked.change.marks()  # adapters that are none are refused before any warning
    print_warnings(prompts, word_warnings(prompts, codec, limit))
    jobs = clip_jobs(read_prompts(prompts)[:limit], config)
    print_warnings(prompts, beyond(jobs, config, read_model_folder(model).facts))
    folders = [one.folder for one in asked.change.adapters]
    inputs, started = digests_of_inputs(model, codec, prompts, *folders), time.monotonic()
    made = pretrain.generate.generate(
        config, model, codec, prompts, to, limit, asked.change, spread=spread, aside=aside
    )
    if not made["made"]:
        print(f"{to}: all {made['clips']} clips are there already, made with the same; nothing to do")
        return
    described = {**as_plain(config), "limit": limit, **more}
    files, seconds = [] if is_remote(to) else [to], time.monotonic() - started
    record_run("generate", described, tags, Layout(), Path(), inputs, files, seconds, whole=True)
    print(f"clips in {to}")


def _adapters(given: Sequence[str], model: Path, weights: WeightsName) -> MergedAdapters:
    """Those of --adapter, fetched where the registry names them."""
    from experiments.runs.registry import model_folder
    from finetune.adapters import MergedAdapters, parse_scaled

    found = [parse_scaled(text) for text in given]
    folders = tuple(replace(one, folder=model_folder(one.folder, Path("out"))) for one in found)
    return MergedAdapters(model, weights, folders)


def frames_of(seconds: float, fps: float) -> int:
    """The number of frames, 1 + 4n, that is nearest to a duration. Raises ValueError for none."""
    from pretrain.types import MAX_FRAMES, VIDEO_FRAMES_PER_LATENT

    if not (math.isfinite(seconds) and 0 < seconds <= MAX_FRAMES / fps):
        raise ValueError(
            f"--duration: expected seconds, above 0 and up to {MAX_FRAMES / fps:g}, got {seconds:g}"
        )
    step = VIDEO_FRAMES_PER_LATENT
    return 1 + step * max(0, round((seconds * fps - 1) / step))


def _quoted(name: str, value: object) -> str:
    """A value as YAML: texts may hold anything."""
    import yaml

    if name not in ("negative_prompt", "task", "fit", "sampler.solver"):
        return str(value)
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")


def _require(path: Path, hint: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {hint}")
