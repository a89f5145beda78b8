"""What `nava study objectives` compares, as one frozen section of the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.curation import CurationConfig
from pretrain.config import nearest

BASELINE = "pretrained"
NFT, TIES, NO_TIES, CHOSEN, RANDOM = (
    "nft",
    "gsb_dpo",
    "gsb_dpo_no_ties",
    "nft_chosen_third",
    "nft_random_third",
)
ALGORITHM = {
    NFT: "nft",
    "rwr": "rwr",
    "awm": "awm",
    "grpo": "grpo",
    TIES: "gsb_dpo",
    NO_TIES: "gsb_dpo",
    CHOSEN: "nft",
    RANDOM: "nft",
}
ARMS = (BASELINE, *ALGORITHM)


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """Size of the study; everything else is the recipe's. Raises ValueError for numbers out of range."""

    arms: tuple[str, ...] = ARMS
    seeds: int = 3  # of alignment, from 0; there is one pretrained model
    # rollout budget of every arm: rounds * nft.prompts_per_round * nft.clips_per_prompt clips
    rounds: int = 6
    num_prompts: int = 0  # the first of the held-out ones; 0 = all
    pilot_clips: int = 4  # per training prompt, to estimate its gain
    # of the curated and the random third
    curation: CurationConfig = field(default_factory=lambda: CurationConfig(gain_weight=0.9))
    recognizer_processes: int = 2
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("seeds", "rounds", "recognizer_processes", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"objectives.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_prompts < 0 or self.pilot_clips < 2:
            raise ValueError(
                f"objectives: num_prompts from 0 and pilot_clips from 2, got {self.num_prompts} and "
                f"{self.pilot_clips}"
            )
        for name in self.arms:
            if name not in ARMS:
                raise ValueError(f"objectives.arms: unknown arm {name!r}; {nearest(name, ARMS)}")
        if len(set(self.arms)) < len(self.arms) or BASELINE not in self.arms or len(self.arms) < 2:
            raise ValueError(
                f"objectives.arms: distinct arms, {BASELINE} and at least one more, got {list(self.arms)}"
            )
