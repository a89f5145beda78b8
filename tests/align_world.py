"""A tiny model, codec and prompts to align, and rewards that can be read off the latents."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_cases import debug_model
from PIL import Image
from rank_processes import run_processes
from test_codecs import audio_codec, sounds, video_codec
from torch import Tensor

from finetune.align_run import AlignRun
from finetune.lora import LoraConfig
from finetune.objectives.awm import AwmPhase
from finetune.objectives.base import Phase
from finetune.objectives.grpo import GrpoPhase
from finetune.objectives.nft import NftPhase
from finetune.objectives.rwr import RwrPhase
from finetune.recipe import AlignConfig, RubricConfig, StopConfig
from finetune.scores import Scores
from pretrain.codecs.folder import save_linear
from pretrain.codecs.speaker import SpectralSpeakerEncoder, voice_statistics
from pretrain.media.write import write_wav
from pretrain.model.checkpoint import write_model
from pretrain.model.flavors import flavor
from pretrain.prompt import PromptRow
from pretrain.sampling import SamplerConfig

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SCORER = "align_world:LatentScorer"


def write_world(folder: Path) -> Path:
    """base/ (a random debug model), codec/, prompts.jsonl of ten prompts, every other one with a reference
    voice."""
    statistics = torch.stack([voice_statistics(sound) for sound in sounds()[::4]])
    parts = {"video": video_codec().projection.tensors(), "audio": audio_codec().projection.tensors()}
    save_linear(
        folder / "codec",
        {**parts, "speaker": SpectralSpeakerEncoder.fit(statistics).tensors()},
        {"width": 256},
        4,
    )
    codec_id = json.loads((folder / "codec" / "config.json").read_text())["codec_id"]
    write_model(
        folder / "base",
        "debug",
        flavor("debug"),
        {"ema": debug_model().state_dict()},
        {"codec_id": codec_id, "ema_updates": 1},
    )
    write_wav(folder / "voice.wav", sounds()[0].numpy(), 16_000)
    voices: list[dict[str, Any]] = [{}, {"spk_wavs": ["voice.wav"]}]
    rows = [
        {"prompt": f"A man says <S>{word}<E>.", "data_id": f"p{index}", "num_frames": 5, **voices[index % 2]}
        for index, word in enumerate(WORDS)
    ]
    write_rows(folder / "prompts.jsonl", rows)
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_mixed(folder: Path) -> Path:
    """mixed.jsonl beside `write_world`'s files: five prompts of each of three kinds (short, with a first
    frame, long and high) and one of a fourth; held_out.jsonl of all three, two, three and two."""
    for index in range(6):
        colours = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours.repeat(8, 0).repeat(8, 1)).save(folder / f"face{index}.png")
    voices: list[dict[str, Any]] = [{}, {"spk_wavs": ["voice.wav"]}]
    kinds: dict[str, list[dict[str, Any]]] = {
        "short": [{} for _ in range(7)],
        "image": [{"image_path": f"face{index % 6}.png"} for index in range(8)],
        "long": [{"num_frames": 9, "height": 64} for _ in range(7)],
    }
    rows = {
        kind: [
            {"prompt": f"A {kind} man says <S>{WORDS[index]}<E>.", "data_id": f"{kind}{index}", **fields}
            | voices[index % 2]
            for index, fields in enumerate(some)
        ]
        for kind, some in kinds.items()
    }
    odd = {"prompt": "A wide man.", "data_id": "wide", "width": 64}
    write_rows(folder / "mixed.jsonl", [*(row for some in rows.values() for row in some[:5]), odd])
    write_rows(folder / "held_out.jsonl", [row for some in rows.values() for row in some[5:]])
    return folder


def config(
    sequence: tuple[str, ...] = ("nft",),
    rounds: int = 2,
    phase: dict[str, Any] | None = None,
    phases: dict[str, Phase] | None = None,
    **changes: Any,
) -> AlignConfig:
    """fp32, four prompts of four clips a round, two held-out prompts. phase: fields of all four phases;
    phases: more of them."""
    common: dict[str, Any] = {
        "rounds": rounds,
        "prompts_per_round": 4,
        "clips_per_prompt": 4,
        "epochs": 2,
        "micro_batch": 8,
        "lr": 3e-3,
        "sampler": SamplerConfig(solver="euler", steps=4, guidance=NftPhase().sampler.guidance),
        **(phase or {}),
    }
    fields: dict[str, Any] = {
        "sequence": sequence,
        "phases": {
            "nft": NftPhase(**common),
            "rwr": RwrPhase(**common),
            "awm": AwmPhase(**common),
            "grpo": GrpoPhase(**{"window": 1, "first_steps": 2, "steps_per_epoch": 2, **common}),
            **(phases or {}),
        },
        "rubric": RubricConfig(audio={"warm": 1.0}, sync={}),
        "stop": StopConfig(prompts=2, every=2),
        "lora": LoraConfig(rank=4, alpha=8),
        "mixed_precision": "fp32",
        "num_frames": 5,
        "height": 32,
        "width": 32,
        "samples": 1,
        "deployed": common["sampler"],
        **changes,
    }
    return dataclasses.replace(AlignConfig(), **fields)


def align_run(world: Path, out: Path, recipe: AlignConfig, **options: Any) -> AlignRun:
    out.mkdir(parents=True, exist_ok=True)
    run = AlignRun(
        config=recipe,
        base=world / "base",
        codec=world / "codec",
        prompts=world / "prompts.jsonl",
        scorer=(SCORER, options),
        out=out,
    )
    run.save()
    return run


def run_align(run: AlignRun, world_size: int = 1, mishap: str = "") -> list[int]:
    """Exit codes. kill@N: SIGKILL after round N was saved. term@N: SIGTERM to the last rank while round N is
    scored."""
    return run_processes(_rank, world_size, run.out, run.out / "resolved.json", mishap)


def metrics(run: AlignRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]


def error(run: AlignRun) -> str:
    """The one line of the first rank that failed."""
    line = sorted(run.out.glob("error.txt.*"))[0].read_text()
    assert line.count("\n") == 1
    return line


class LatentScorer:
    """`warm`: mean of the audio latents; `bright`: mean of the video latents. `fail_at`, `flat`, `nan`,
    `falls_from`: what goes wrong, at or from which scoring."""

    def __init__(
        self,
        fail_at: int = 0,
        flat: bool = False,
        nan: bool = False,
        falls_from: int = 0,
        names: Sequence[str] = ("warm",),
        judge: float = 0.0,
    ) -> None:
        self.judge = judge  # the judge `ear` measures this times `warm`, 0 = there is none
        self.fail_at, self.flat, self.nan, self.falls_from, self.names, self.calls = (
            fail_at,
            flat,
            nan,
            falls_from,
            names,
            0,
        )

    def score(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], judged: bool = False) -> Scores:
        self.calls += 1
        if self.calls == self.fail_at and _is_last():
            raise RuntimeError("reward warm failed: its network is gone")
        if self.calls == _TERM_AT and _is_last():
            os.kill(os.getpid(), signal.SIGTERM)
        found = {"warm": audio.flatten(1).mean(1).double(), "bright": video.flatten(1).mean(1).double()}
        found = {name: found[name] for name in self.names}
        if self.falls_from and self.calls >= self.falls_from:
            found = {name: value - 10 * self.calls for name, value in found.items()}
        if self.flat or self.nan:
            found = {
                name: torch.full_like(value, float("nan") if self.nan else 0.5)
                for name, value in found.items()
            }
        reasons = dict.fromkeys(found, "silent") if self.nan else {}
        judges = {"ear": self.judge * audio.flatten(1).mean(1).double()} if judged and self.judge else {}
        parts = {"warm.twice": 2 * found[self.names[0]]}
        return Scores(found, parts, {"flagged": torch.zeros(len(rows))}, reasons, judges)

    def write(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "clip.txt").write_text(rows[0].data_id)
        return [folder / "clip.txt"]

    def close(self) -> None: ...


_TERM_AT = 0


def _is_last() -> bool:
    """On the last rank; a worker that is no rank is by itself."""
    return int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1


def _rank(rank: int, resolved: Path, mishap: str) -> int:
    from finetune import loop, run

    kind, _, number = mishap.partition("@")
    if kind == "term":
        globals()["_TERM_AT"] = int(number) + 1  # the first scoring is of the held-out prompts
    if kind == "kill":
        save = loop.Alignment._save

        def save_with(self: loop.Alignment) -> None:
            save(self)
            if self.progress.rounds == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

        loop.Alignment._save = save_with  # type: ignore[method-assign]
    return run.main(resolved)
