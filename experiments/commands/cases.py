"""Options of `nava evaluate BENCHMARK --model M`, which makes the clips of a benchmark and scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.commands.generate import (
    AdaptersToUse,
    ClipsMoveAside,
    CodecOfModel,
    Making,
    MakingOptions,
    Spreading,
    SpreadOptions,
)
from experiments.commands.options import recipe_for

if TYPE_CHECKING:
    from experiments.paper.cases import CasePrompt
    from experiments.paper.layouts import BenchItem
    from pretrain.generate import Spread

CaseOptions = Annotated["MakeCases", tyro.conf.arg(name="")]
RECIPE_SECTIONS = ("generate.", "ray.")  # of --set, for the recipe; the others are for rewards
PromptOf = Callable[[float, float | None], "CasePrompt"]  # (fps, seconds of every clip or None)


@dataclass(frozen=True)
class MakeCases:
    """Which model makes the clips, and how, as of `nava generate`."""

    model: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FOLDER",
            help="makes the clips of the cases, into --clips (default TO/clips); without it the clips there "
            "are scored",
        ),
    ] = None
    codec: CodecOfModel = None
    adapter: AdaptersToUse = ()
    recipe: str = "mini"
    making: MakingOptions = field(default_factory=Making)
    spreading: SpreadOptions = field(default_factory=Spreading)
    move_aside: ClipsMoveAside = False

    def without_model(self) -> None:
        """Raises ValueError where something says how clips are made and no model makes them."""
        plain = MakeCases()
        for option in fields(self):
            mine, default = getattr(self, option.name), getattr(plain, option.name)
            names = [
                one.name
                for one in (fields(mine) if option.name in ("making", "spreading") else ())
                if getattr(mine, one.name) != getattr(default, one.name)
            ]
            if mine != default:
                name = (names or [option.name])[0].replace("_", "-")
                raise ValueError(f"--{name}: clips are made by --model only; give it, or leave this out")


def split_settings(settings: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(of the recipe, of rewards)."""
    recipe = tuple(text for text in settings if text.startswith(RECIPE_SECTIONS))
    return recipe, tuple(text for text in settings if text not in recipe)


def make_cases(
    items: Sequence[BenchItem],
    prompt_of: PromptOf,
    options: MakeCases,
    settings: tuple[str, ...],
    clips: Path,
    to: Path,
    task: str | None,
    ready: Callable[[], None],
) -> list[BenchItem]:
    """The cases with the clips that `options.model` makes of them. task: where no option says one; ready:
    called before the first clip is made.

    Raises ValueError or OSError in one line: wrong options, inputs that are missing, no case can be made.
    """
    from experiments.commands.generate import asked_clips, make_clips
    from experiments.paper.cases import CaseCheck
    from experiments.paper.making import PROMPTS, made
    from pretrain.codecs.load import load_codecs

    assert options.model is not None
    making = replace(options.making, task=options.making.task or task)
    if making.seeds is not None:
        raise ValueError("--seeds: a case has one clip; give --seed, and each seed a --to of its own")
    loaded = recipe_for(options.recipe, settings)
    if asked := making.settings(loaded.generate.fps):
        loaded = recipe_for(options.recipe, (*settings, *asked))
    spread, config = options.spreading.spread(loaded.ray), loaded.generate
    to.mkdir(parents=True, exist_ok=True)
    wanted, tags = asked_clips(to / PROMPTS, options.model, options.codec, options.adapter, config, None)
    tags |= {"nava.recipe": options.recipe, "nava.output": str(clips)}
    more: dict[str, Any] = {"adapters": list(options.adapter)} if options.adapter else {}

    def make(prompts: Path, watching: Callable[[Spread], Spread]) -> None:
        make_clips(replace(wanted, prompts=prompts), clips, watching(spread), options.move_aside, tags, more)

    check = CaseCheck(load_codecs(wanted.codec), config, to / PROMPTS)
    return made(items, prompt_of(config.fps, making.duration), check, make, clips, to, ready)
