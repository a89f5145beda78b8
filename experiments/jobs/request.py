"""A launch request and its command line, shared by all launchers."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from experiments.jobs.secret_names import check_no_secret
from rewards import plugins

RENDEZVOUS_PORT = 29_500
RENDEZVOUS = '"$rendezvous"'  # a shell variable, because only the scheduler knows the first node's address
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What `nava finetune` is launched with: its own options, by their names. Raises ValueError for options
    without clips and for both kinds of weights."""

    clips: str = ""  # a manifest, an encoded set, a folder or table of clips; launches `nava finetune`
    model: str = ""  # model to start from; default that of the recipe's last pretraining stage in --out
    codec: str = ""  # its codec; default OUT/codec, or that of a registered model
    to: str = ""  # folder of the result, on storage that every node sees; default OUT/finetune
    lora: bool = False  # train a LoRA adapter: the recipe's default
    full: bool = False  # train all weights

    def __post_init__(self) -> None:
        others = [name for name in ("model", "codec", "to", "lora", "full") if getattr(self, name)]
        if others and not self.clips:
            raise ValueError(
                f"--finetune.{others[0]}: a fine-tuning needs clips to train on; give --finetune.clips"
            )
        if self.lora and self.full:
            raise ValueError("--finetune.lora and --finetune.full exclude each other; give one")

    @property
    def places(self) -> dict[str, str]:
        """Option -> what it names, of those that are given."""
        given = {name: getattr(self, name) for name in ("clips", "model", "codec", "to")}
        return {name: text for name, text in given.items() if text}

    def arguments(self) -> list[str]:
        """Options of `nava finetune`."""
        kind = ["--lora"] if self.lora else ["--full"] if self.full else []
        return [*(f"--{name}={text}" for name, text in self.places.items()), *kind]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A training of `recipe` on `nodes` x `gpus_per_node` ranks: its pretraining, or a fine-tuning where that
    has clips. Raises ValueError for invalid fields."""

    recipe: str
    nodes: int = 1
    gpus_per_node: int = 8
    stage: str = "all"
    settings: tuple[str, ...] = ()  # key=value, as --set takes them
    init_from: str = ""  # a model folder to start from
    out: str = "out"  # on storage that every node sees
    max_restarts: int = 3  # times torchrun starts the ranks again after one has died
    grace_s: int = 120  # seconds between the signal to stop and the end
    workdir: str = ""  # where the repository is; "" = where the launcher starts
    env: tuple[str, ...] = ()  # NAME=value, or NAME of the environment that submits
    finetune: Finetuning = field(default_factory=Finetuning)

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus_per_node < 1:
            raise ValueError(
                f"--nodes and --gpus-per-node must be at least 1, got {self.nodes} and {self.gpus_per_node}"
            )
        if self.max_restarts < 0 or self.grace_s < 30:
            raise ValueError(
                f"--max-restarts must be at least 0 and --grace-s at least 30, got {self.max_restarts} and "
                f"{self.grace_s}"
            )
        if self.tunes and (self.stage != "all" or self.init_from):
            raise ValueError(
                "--stage and --from are of pretraining; what a fine-tuning starts from is --finetune.model"
            )
        for text in (
            self.recipe,
            self.stage,
            self.init_from,
            self.out,
            self.workdir,
            *self.settings,
            *self.finetune.places.values(),
        ):
            if _has_control(text):
                raise ValueError(f"{text!r}: control characters cannot go into a command line; take them out")
        self.variables()

    @property
    def tunes(self) -> bool:
        """Whether a fine-tuning is launched, and not the recipe's pretraining."""
        return bool(self.finetune.clips)

    @property
    def name(self) -> str:
        """The recipe's name as schedulers accept it: lower case, digits and dashes; with `finetune` if it
        is one."""
        called = f"{self.recipe}-finetune" if self.tunes else self.recipe
        plain = re.sub(r"[^a-z0-9]+", "-", called.lower()).strip("-")[-40:].strip("-")
        return plain if plain and plain[0].isalpha() else f"nava-{plain}".strip("-")

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    def arguments(self) -> list[str]:
        """Command line of every node, without the rendezvous."""
        what = self.finetune.arguments() if self.tunes else [f"--stage={self.stage}"]
        command = ["nava", "finetune" if self.tunes else "pretrain", self.recipe, *what]
        command += [f"--nproc={self.gpus_per_node}", f"--nnodes={self.nodes}"]
        command += [f"--max-restarts={self.max_restarts}", f"--out={self.out}"]
        if self.init_from:
            command.append(f"--from={self.init_from}")
        return [*command, *(f"--set={setting}" for setting in self.settings)]

    def command(self) -> str:
        """Quoted shell command; several nodes use $rendezvous."""
        return shlex.join(self.arguments()) + (f" --rdzv={RENDEZVOUS}" if self.nodes > 1 else "")

    def variables(self) -> dict[str, str]:
        """Environment variables, with the grace period for the last checkpoint.

        Raises ValueError, without the value: it may be a secret.
        """
        found = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.grace_s - 15), **plugins.inherited()}
        for item in self.env:
            name, equals, value = item.partition("=")
            if not _ENV_NAME.fullmatch(name):
                shown = "..." if _has_control(name) or not equals else name[:40]
                raise ValueError(
                    f"--env {shown}: expected NAME=value, or NAME alone; control characters cannot go in"
                )
            if _has_control(value):
                raise ValueError(
                    f"--env {name}=...: control characters cannot go into a command line; take them out"
                )
            check_no_secret(
                name, value, f"export {name} where you submit and give --env {name}, without a value"
            )
            if equals:
                found[name] = value
        return found

    @property
    def passed(self) -> list[str]:
        """Names of variables that come from the environment that submits; their values are in no file."""
        return [item for item in self.env if "=" not in item]

    def preamble(self) -> str:
        """Shell lines before the command."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.variables().items()]
        lines += [f': "${{{name}:?export it where you submit}}"; export {name}' for name in self.passed]
        if self.workdir:
            lines.append(f"cd -- {shlex.quote(self.workdir)}")
        return "\n".join(lines)


def _has_control(text: str) -> bool:
    return any(ord(sign) < 32 or ord(sign) == 127 for sign in text)
