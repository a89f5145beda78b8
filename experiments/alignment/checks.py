"""Everything about an alignment that can be wrong is found before its model is loaded or a file replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.alignment.rubric_checks import check_rubric
from experiments.scoring.latents import AlignScorer
from experiments.scoring.reward_files import check_reward_files
from finetune.adapters import check_adapter, read_adapter
from finetune.align_run import AlignRun
from finetune.gsb.pairs import PreferencePair
from finetune.joined_store import makers
from finetune.pair_batches import open_pairs
from finetune.prompts import PromptSet, read_prompt_set
from finetune.rollout_store import RolloutStore, open_store
from pretrain.clip_kind import by_kind
from pretrain.codecs.base import Codecs, check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.model.checkpoint import ModelFolder, open_weights, read_model_folder
from pretrain.model.context_parallel import check_degree, check_split
from pretrain.model.flavors import build_model
from pretrain.prompt import PromptRow
from pretrain.titan.moments import optimizer_name


def check_before(run: AlignRun, ranks: int) -> list[str]:
    """Check what the ranks need; returns notices for the user.

    Raises ValueError or FileNotFoundError in one line that names the file, row or key.
    """
    check_reward_files(run.scorer[1]["options"])
    run.identity()
    run.config.check_ranks(ranks)
    optimizer_name(run.config.moments, "align.moments")
    described = check_model(run)
    codecs = load_codecs(run.codec)
    check_codec(run, codecs, described)
    prompts = read_prompt_set(run.prompts, run.config, run.chosen, run.held_out)
    check_context(run, prompts, described)
    notices = [*other_base(run), *check_rubric(run, prompts)]
    if run.pairs and run.clips:
        check_pairs(run, codecs, prompts, described)
    AlignScorer(**run.scorer[1]).close()
    return notices


def check_model(run: AlignRun) -> ModelFolder:
    """The base's description. Raises in one line where it is no model, its weights are missing or of other
    shapes, or the adapter is not of it."""
    described = read_model_folder(run.base)
    with torch.device("meta"):
        model = build_model(described.args)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    open_weights(run.base, run.weights, shapes)
    if run.adapter:
        check_adapter(run.adapter, run.base)
    return described


def other_base(run: AlignRun) -> list[str]:
    """A notice where the base is held otherwise than when the adapter was trained."""
    base = run.config.lora.base
    if not run.adapter or (before := read_adapter(run.adapter)[0].config.base) == base:
        return []
    return [f"{run.adapter}: trained on a base held in {before}; here it is held in {base} (align.lora.base)"]


def check_codec(run: AlignRun, codecs: Codecs, described: ModelFolder) -> None:
    """Raises ValueError where the model knows another codec, or text of another width."""
    check_trained_on(codecs, run.codec, described.facts, run.base)
    if codecs.text.width != described.args.text_width:
        raise ValueError(
            f"{run.codec}: text of width {codecs.text.width}, but {run.base} ({described.flavor}) takes "
            f"{described.args.text_width}; give the codec that the model was trained with"
        )


def check_context(run: AlignRun, prompts: PromptSet, described: ModelFolder) -> None:
    """Raises ValueError where the model or the clips of a prompt do not split over a context group."""
    args, size = described.args, run.config.parallel.context
    check_degree(args, size)
    for kind, rows in by_kind(prompts.rows(), run.config).items():
        _, frames, height, width = kind.video_shape
        audio = kind.audio_shape(run.config.fps)[1]
        check_split(frames, height // args.patch_size, width // args.patch_size, audio, size, rows[0].where)


def check_pairs(run: AlignRun, codecs: Codecs, prompts: PromptSet, described: ModelFolder) -> None:
    """Raises ValueError for clips of another model or codec, pairs of held-out prompts, and pairs that an
    objective of the sequence cannot learn from."""
    assert run.pairs and run.clips
    store, base_id = open_store(run.clips), str(described.facts["checkpoint_id"])
    made_by = makers(store.facts)
    if made_by and base_id not in made_by:
        raise ValueError(
            f"{run.clips}: clips of model {' and '.join(sorted(made_by))}, but {run.base} is {base_id}; "
            "votes teach only a model whose clips they are about: roll out and vote again"
        )
    store.check_codec(codecs, run.codec)
    pairs = open_pairs(run.pairs, store, 1).pairs
    _check_held_out(run.pairs, pairs, store, prompts.held_out, run.held_out or run.prompts)
    for objective in run.config.objectives():
        if objective.needs_pairs:
            objective.prepare(run, codecs)


def _check_held_out(
    path: Path,
    pairs: Sequence[PreferencePair],
    store: RolloutStore,
    rows: tuple[PromptRow, ...],
    source: Path,
) -> None:
    """Raises ValueError where a pair is about a held-out prompt: it would be trained on."""
    names, texts = {row.data_id: row for row in rows}, {row.prompt.text: row for row in rows}
    for number, pair in enumerate(pairs, start=1):
        case = pair.case_id or store.case(pair.first.clip_id)
        row = names.get(case) or texts.get(pair.first.prompt)
        if row:
            raise ValueError(
                f"{path}: pair {number} (case {case!r}) is about the held-out prompt {source}:{row.line}, "
                "which must not be trained on; leave the pair or the prompt out"
            )
