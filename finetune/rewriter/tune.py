"""Tunes a prompt rewriter with TRL: GRPO or DPO of a LoRA adapter on a frozen language model.

One process. A killed run resumes from its newest complete checkpoint and ends with the same adapter.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.rewriter import checkpoints
from finetune.rewriter.config import DpoTuning, GrpoTuning, Tuning, described
from finetune.rewriter.form import TEMPLATE_ID, messages
from finetune.rewriter.language_model import (
    check_folder,
    completion,
    folder_digest,
    half_precision,
    load,
    request,
)
from finetune.rewriter.rewards import ClipScore, check_weights, reward_functions
from finetune.rewriter.votes import RewritePair, as_completion
from pretrain.files import apply_umask
from pretrain.launch.alone import one_process
from pretrain.owned import owned_folder
from pretrain.progress import StageProgress
from pretrain.prompt import PromptRow
from pretrain.randomness import stable_hash
from pretrain.tracking import JsonlTracker, Trackers
from pretrain.types import Tracker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS = "metrics.jsonl"
TrainingRows = list[dict[str, Any]]
# (model, tokenizer, keyword arguments of the trainer, keyword arguments of its config) -> TRL trainer
BuildTrainer = Callable[[Any, Any, dict[str, Any], dict[str, Any]], Any]


@dataclass(frozen=True)
class TuneResult:
    """End of a run: "finished" with out/adapter and out/model, or "interrupted" at checkpoint `step`."""

    status: str
    step: int
    adapter: Path
    model: Path


def check_grpo(config: GrpoTuning, prompts: int, scores_clips: bool) -> None:
    """Raises ValueError for settings that `tune_grpo` cannot run with so many prompts."""
    check_weights(config.rewards, scores_clips)
    per_step = config.batch // config.group
    if prompts < per_step:
        raise ValueError(
            f"{prompts} prompts, and a step takes {per_step} (batch / group); give more prompts or a "
            "smaller batch"
        )
    if config.vllm:
        from trl.import_utils import is_vllm_available

        if not is_vllm_available():
            raise ValueError(
                "vllm: this environment has no vLLM to talk to the server with (pip install trl[vllm]); or "
                "leave vllm empty"
            )


def tune_grpo(
    config: GrpoTuning,
    model: Path,
    rows: Sequence[PromptRow],
    out: Path,
    score: ClipScore | None = None,
    score_id: str = "",
    trackers: Sequence[Tracker] = (),
) -> TuneResult:
    """GRPO on `rows`. `score` scores their clips; `score_id` identifies it in the run's identity.

    Raises ValueError or FileNotFoundError in one line for an unusable model, settings or folder, a diverged
    tuning, and what a reward raises.
    """
    check_grpo(config, len(rows), score is not None)
    functions, weights = reward_functions(config.rewards, score, rows)
    each = config.normalise == "each" or (config.normalise == "auto" and score is not None)
    sources = [row.prompt.text for row in rows]
    _check_text([(row.data_id, row.prompt.text) for row in rows])
    data = [
        {"prompt": messages(source), "source": source, "row": place} for place, source in enumerate(sources)
    ]

    def build(network: Any, tokenizer: Any, shared: dict[str, Any], common: dict[str, Any]) -> Any:
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        arguments = GRPOConfig(
            **common,
            num_generations=config.group,
            max_completion_length=config.completion_tokens,
            temperature=config.temperature,
            beta=config.beta,
            reward_weights=weights,
            use_vllm=bool(config.vllm),
            vllm_mode="server",
            vllm_server_base_url=config.vllm or None,
            shuffle_dataset=False,
            multi_objective_aggregation="normalize_then_sum" if each else "sum_then_normalize",
        )
        formatted = [{**row, "prompt": request(tokenizer, row["prompt"])} for row in data]
        _check_fits(network, tokenizer, [row["prompt"] for row in formatted], config.completion_tokens, model)
        return _quiet(GRPOTrainer)(
            model=network,
            reward_funcs=functions,
            args=arguments,
            train_dataset=Dataset.from_list(formatted),
            **shared,
        )

    identity = {"data": _digest(data), "score": score_id}
    return _run("grpo", config, model, out, identity, build, config.batch // config.group, trackers)


def tune_dpo(
    config: DpoTuning, model: Path, pairs: Sequence[RewritePair], out: Path, trackers: Sequence[Tracker] = ()
) -> TuneResult:
    """Make preferred rewrites more likely than rejected ones. Raises as `tune_grpo`."""
    if not pairs:
        raise ValueError("no pair to learn from; give votes that prefer one rewrite to another")
    _check_text(
        [(pair.case_id, text) for pair in pairs for text in (pair.source, pair.chosen, pair.rejected)]
    )
    data = [
        {
            "prompt": messages(pair.source),
            "chosen": as_completion(pair.source, pair.chosen),
            "rejected": as_completion(pair.source, pair.rejected),
        }
        for pair in pairs
    ]

    def build(network: Any, tokenizer: Any, shared: dict[str, Any], common: dict[str, Any]) -> Any:
        from datasets import Dataset
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        arguments = DPOConfig(**common, beta=config.beta, loss_type=[config.loss], max_length=None)
        formatted = [
            {
                "prompt": request(tokenizer, row["prompt"]),
                **{side: completion(tokenizer, row[side]) for side in ("chosen", "rejected")},
            }
            for row in data
        ]
        longest = max(len(tokenizer(row[side]).input_ids) for row in data for side in ("chosen", "rejected"))
        _check_fits(network, tokenizer, [row["prompt"] for row in formatted], longest, model)
        return _quiet(DPOTrainer)(
            model=network, args=arguments, train_dataset=Dataset.from_list(formatted), **shared
        )

    return _run("dpo", config, model, out, {"data": _digest(data)}, build, config.batch, trackers)


def _run(
    algorithm: str,
    config: Tuning,
    model: Path,
    out: Path,
    identity: Mapping[str, Any],
    build_trainer: BuildTrainer,
    per_step: int,
    trackers: Sequence[Tracker],
) -> TuneResult:
    check_folder(model)
    facts = {
        "algorithm": algorithm,
        "config": described(config),
        "model": folder_digest(model),
        "template": TEMPLATE_ID,
        **identity,
    }
    checkpoints.claim(out, facts)
    resumed, checkpoint = checkpoints.newest(out)
    network, tokenizer = load(model, config.device)
    from peft import LoraConfig
    from transformers import PrinterCallback

    from finetune.rewriter.watch import Watch, describe

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    shared = {"processing_class": tokenizer, "peft_config": lora}
    with one_process(f"rewriter {algorithm}"), _without_trl_warnings():
        trainer = build_trainer(network, tokenizer, shared, _arguments(config, out))
        trainer.train_dataset = trainer.train_dataset.select(
            _order(len(trainer.train_dataset), config.steps * per_step, config.seed)
        )
        trainer.remove_callback(PrinterCallback)
        rows = Trackers(JsonlTracker(out / METRICS, resumed or -1), trackers)
        with StageProgress(f"rewriter {algorithm}", config.steps, describe) as progress:
            watch = Watch(rows, progress)
            trainer.add_callback(watch)
            with watch.signals():
                step = (
                    _train(trainer, checkpoint, out)
                    if resumed < config.steps
                    else _take(trainer, checkpoint, resumed)
                )
    tuned = TuneResult(
        "finished" if step >= config.steps else "interrupted", step, out / "adapter", out / "model"
    )
    if tuned.status == "finished":
        _export(trainer, tokenizer, tuned)
    for tracker in trackers:
        tracker.set_tags({"status": tuned.status, "nava.parent_model_sha256": facts["model"]})
        tracker.log_artifact(str(out / METRICS))
    return tuned


def _order(count: int, wanted: int, seed: int) -> list[int]:
    """Row numbers of all steps as one epoch, reshuffled per pass: TRL's samplers restart on resuming."""
    passes = range(-(-wanted // count))
    return [
        place
        for number in passes
        for place in random.Random(stable_hash(seed, "pass", number)).sample(range(count), count)
    ][:wanted]


def _take(trainer: Any, checkpoint: Path | None, step: int) -> int:
    """The adapter of the last step's checkpoint; the trainer would take one step more."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    assert checkpoint is not None
    set_peft_model_state_dict(
        trainer.accelerator.unwrap_model(trainer.model), load_file(checkpoint / "adapter_model.safetensors")
    )
    return step


def _train(trainer: Any, checkpoint: Path | None, out: Path) -> int:
    """Steps done, those of earlier runs included."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer.state.global_step
    except Exception as error:
        # the writers of a checkpoint's parts report it in different ways
        if shutil.disk_usage(out).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
        raise


@contextmanager
def _without_trl_warnings() -> Iterator[None]:
    """Without warnings of TRL and transformers about each other's settings."""
    from datasets import disable_progress_bars

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        disable_progress_bars()
        yield


def _arguments(config: Tuning, out: Path) -> dict[str, Any]:
    """Arguments common to GRPO and DPO. Two checkpoints are kept: the newest may be incomplete."""
    half = half_precision(config.device)
    return {
        "output_dir": str(out / checkpoints.FOLDER),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.batch // config.micro_batch,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": "constant_with_warmup",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "seed": config.seed,
        "bf16": half,
        "use_cpu": config.device == "cpu",
        "gradient_checkpointing": config.gradient_checkpointing,
        "report_to": [],
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "train_sampling_strategy": "sequential",
    }


def _quiet(kind: Any) -> Any:
    """The trainer class without model card and telemetry."""
    return type(
        kind.__name__,
        (kind,),
        {"_send_telemetry": lambda self: None, "create_model_card": lambda self, *_, **__: None},
    )


def _export(trainer: Any, tokenizer: PreTrainedTokenizerBase, tuned: TuneResult) -> None:
    """out/adapter (PEFT) and out/model (merged, for vLLM or another tuning), each whole or not at all."""
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    merged = (tuned.model, lambda path: adapted.merge_and_unload().save_pretrained(path))
    # in this order: merging removes the adapter
    for folder, save in ((tuned.adapter, adapted.save_pretrained), merged):
        with owned_folder(folder, "rewriter") as partial:
            save(partial)
            tokenizer.save_pretrained(partial)
            (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            for weights in partial.glob("*.safetensors"):
                apply_umask(weights)


def _check_text(named: Sequence[tuple[str, str]]) -> None:
    for name, text in named:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name!r}: half a surrogate pair at character {error.start + 1}, which no tokenizer takes; "
                "mend it"
            ) from None


def _check_fits(
    network: Any, tokenizer: Any, prompts: Sequence[Any], completion_tokens: int, folder: Path
) -> None:
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    prompt_tokens = max(len(_tokens(tokenizer, prompt)) for prompt in prompts)
    if limit and prompt_tokens + completion_tokens > limit:
        raise ValueError(
            f"{folder}: takes {limit} tokens, and a request of {prompt_tokens} with an answer of "
            f"{completion_tokens} is longer; shorten prompts or completion_tokens, or take another model"
        )


def _tokens(tokenizer: Any, prompt: Any) -> Sequence[int]:
    if isinstance(prompt, str):
        return tokenizer(prompt).input_ids
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


def _digest(data: TrainingRows) -> str:
    return hashlib.sha256(json.dumps(data, ensure_ascii=True, sort_keys=True).encode()).hexdigest()
