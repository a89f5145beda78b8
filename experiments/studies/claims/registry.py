"""What a claim is: what the paper says, how it is asked here, and which comparison decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pretrain.flow.guidance import GuidanceScales
from pretrain.recipe import PretrainConfig

RecipeChange = Callable[[PretrainConfig], PretrainConfig]
ClaimCell = tuple[str, str]  # arm and sampling
GIVEN = "given"  # the arm of rows that only sample: the model that is there
VALIDATION = "validation.json"  # of a trained unit's folder: its last validation losses, by stage
AS_RECIPE = "recipe"  # the sampling of the recipe, and the arm trained as the recipe says


@dataclass(frozen=True)
class ClaimArm:
    """A training: how the recipe is changed.

    own_rate: takes the best of `claims.lr_factors`, by the last validation loss of the first seed.
    beyond_budget: stages that are not part of the FLOPs held equal, such as a model to start from.
    """

    change: RecipeChange = lambda config: config
    own_rate: bool = False
    beyond_budget: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contrast:
    """`ours` minus `theirs`, of the same prompts and seeds; by the claim, ours is the better.

    after: theirs is taken at the end of that stage of its training, of which there are validation losses
    only; "" = at the end of all.
    """

    about: str
    ours: ClaimCell
    theirs: ClaimCell
    after: str = ""


@dataclass(frozen=True)
class Claim:
    """One row of the page.

    measure: the metric, or validation loss, by which the first contrast decides. Without arms the row samples
    from the model that is there. samplings: guidance by name, None = the recipe's. flavor: the only one of
    which the row can be asked, as its arms are of that size; "" = of any. num_stages: that a recipe needs.
    """

    says: str
    where: str  # section of the paper
    asked: str
    measure: str
    contrasts: tuple[Contrast, ...]
    arms: Mapping[str, ClaimArm] = field(default_factory=dict)
    samplings: Mapping[str, GuidanceScales | None] = field(default_factory=lambda: {AS_RECIPE: None})
    prompts: str = "pretrain_seen"
    flavor: str = ""
    num_stages: int = 1

    def __post_init__(self) -> None:
        arms = {*self.arms} or {GIVEN}
        for contrast in self.contrasts:
            for arm, sampling in (contrast.ours, contrast.theirs):
                if arm not in arms or sampling not in self.samplings:
                    raise ValueError(f"claim {self.says!r}: no cell {(arm, sampling)}")

    @property
    def trains(self) -> bool:
        return bool(self.arms)

    def refusal(self, recipe: PretrainConfig) -> str:
        """Why the row cannot be asked of the recipe; "" = it can."""
        if self.trains and self.flavor not in ("", recipe.flavor):
            return f"its arms are of the size of `{self.flavor}`, the recipe's flavor is `{recipe.flavor}`"
        if self.trains and len(recipe.stages) < self.num_stages:
            return f"it needs {self.num_stages} stages, the recipe has {len(recipe.stages)}"
        return ""

    @property
    def cells(self) -> list[ClaimCell]:
        """Every cell of a contrast once, in order."""
        pairs = [(contrast.theirs, contrast.ours) for contrast in self.contrasts]
        return list(dict.fromkeys(cell for pair in pairs for cell in pair))
