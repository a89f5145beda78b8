"""A plan on one screen: tokens and FLOPs, memory by part, what fits, and how long it takes."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

GIB = 2**30


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what `nava plan` found."""
    console = console or Console()
    for table in (_model(found), _memory(found), _batches(found), _fits(found)):
        console.print(table)
    for line in _legend(found):
        console.print(f"  {line}")
    more = (("time", _time), ("costs", _costs), ("dry_run", _dry_run))
    for table in [make(found[key]) for key, make in more if key in found]:
        console.print(table)
    console.print("Assumptions:")
    for line in found["assumptions"]:
        console.print(f"  - {line}")


def _model(found: dict[str, Any]) -> Table:
    table = _table(f"{found['flavor']}: one clip", "", "", "")
    tokens, flops = found["tokens_per_clip"], found["flops_per_clip"]
    table.add_row(
        "parameters",
        f"{found['params_total']:,}",
        f"a video token meets {found['params_met_per_video_token']:,}",
    )
    table.add_row("tokens", f"{tokens['total']:,}", f"{tokens['video']:,} video + {tokens['audio']:,} audio")
    table.add_row("forward", _peta(flops["forward"]), "")
    table.add_row("backward", _peta(flops["backward"]), "")
    table.add_row(
        "training", _peta(flops["training"]), f"{_peta(flops['with_recomputation'])} with recomputation"
    )
    return table


def _memory(found: dict[str, Any]) -> Table:
    setup, parts = found["setup"], found["memory_per_gpu_gib"]
    layout = (
        f"{found['gpus']} GPUs, {setup['shards']} shards, {setup['replicas']} replicas, "
        f"{setup['context']} to a clip"
    )
    work = {"train": "training", "lora": "LoRA", "align": "alignment", "generate": "generation"}[
        setup["work"]
    ]
    held = "" if setup["work"] == "train" else f", base in {setup['base']}"
    recomputed = "" if setup["work"] == "generate" else f", {setup['checkpointing']} checkpointing"
    title = f"memory per GPU of {work}{held}: {setup['local_batch']} clips{recomputed} ({layout})"
    table = _table(title, "part", "GiB", "")
    for part, size in parts.items():
        if part == "total":
            table.add_section()
        table.add_row(part.replace("_", " "), f"{size:,.2f}", "█" * round(30 * size / parts["total"]))
    return table


def _batches(found: dict[str, Any]) -> Table:
    rows, first = found["largest_local_batch"], "checkpointing"
    sizes = _sizes(rows)
    if found["setup"]["work"] == "generate":  # nothing is recomputed
        rows, first = {"": rows["none"]}, ""
    table = _table("largest micro-batch that fits (0 = not one clip)", first, *map(_gb, sizes))
    for mode, fits in rows.items():
        table.add_row(mode, *(str(fits[size]) for size in sizes))
    return table


def _fits(found: dict[str, Any]) -> Table:
    sizes = _sizes(found["fits"])
    table = _table("the recipe's micro-batch fits with", "", *map(_gb, sizes))
    for work, flags in found["fits"].items():
        table.add_row(work, *(flags[size] or "no setting" for size in sizes))
    return table


def _legend(found: dict[str, Any]) -> list[str]:
    """What the options of `fits` are called where the work is started, and works that are refused."""
    lines: list[str] = []
    for option, names in found["settings"].items():
        flag = f"--{option.replace('_', '-')}"
        here = {
            name: None
            for work, name in names.items()
            if any(flag in flags.split() for flags in found["fits"][work].values())
        }
        lines += [f"{flag}: {', '.join(here)}"] if here else []
    return lines + [f"{work} is refused: {why}" for work, why in found["fits_refused"].items()]


def _sizes(rows: dict[str, dict[str, Any]]) -> list[str]:
    return list(next(iter(rows.values())))


def _gb(size: str) -> str:
    return f"{size.removesuffix('_gb')} GB"


def _time(time: dict[str, Any]) -> Table:
    title = (
        f"time at {time['mfu']:.0%} of {time['peak_tflops']:g} TFLOP/s per GPU, "
        f"{time['global_batch_size']} clips a step"
    )
    table = _table(title, "", "steps", "days")
    table.add_row("step with all modalities", f"{time['joint_step_seconds']:.2f} s", "")
    table.add_row("tokens/s", f"{time['tokens_per_s']:,.0f}", f"{time['tokens_per_s_per_gpu']:,.0f} per GPU")
    for name, stage in (*time["stages"].items(), ("total", time["total"])):
        table.add_row(name, f"{stage['steps']:,}", f"{stage['days']:.1f}")
    return table


def _costs(found: dict[str, Any]) -> Table:
    title = f"{found['clips']:,} clips, {found['price_per_gpu_hour']:g} for a GPU hour"
    table = _table(title, "", "", "")
    hours, stored = found["gpu_hours"], found["storage_tb"]
    if hours["encoding"] is None:
        table.add_row("encoding", "not known", "give --encode-pixels-per-s")
    else:
        spread = f"{found['encoding_hours_on_all_gpus']:,.1f} hours on all GPUs"
        table.add_row("encoding", f"{hours['encoding']:,.0f} GPU hours", spread)
    seen = f"each clip is seen {found['times_each_clip_is_seen']:.2f} times"
    table.add_row("training", f"{hours['training']:,.0f} GPU hours", seen)
    table.add_row(
        "latents", f"{stored['latents']:.3f} TB", f"{found['bytes_per_clip'] / 1e6:.2f} MB a clip at most"
    )
    kept = f"{found['states_kept']} that are kept over all stages, and one more"
    table.add_row("training states", f"{stored['training_states']:.3f} TB", kept)
    left = ", without " + ", ".join(found["cost_leaves_out"]) if found["cost_leaves_out"] else ""
    table.add_row("cost", f"{found['cost']:,.0f}", f"{hours['total']:,.0f} GPU hours{left}")
    return table


def _dry_run(found: dict[str, Any]) -> Table:
    table = _table(f"dry run: rank 0 of {found['ranks']}, one step of {found['tokens']} tokens", "", "", "")
    table.add_row("parameters here", f"{found['parameters_here']:,}", f"of {found['parameters_whole']:,}")
    for name, size in found["shard_gib"].items():
        table.add_row(f"shard of {name}", f"{size:.4f} GiB", "")
    reached = f"{found['tensors_with_gradient']:,} with gradients, {found['tensors_stepped']:,} stepped"
    table.add_row("tensors", f"{found['tensors']:,}", reached)
    seconds = found["seconds"]
    table.add_row(
        "seconds",
        f"{seconds['total']:.0f}",
        f"{seconds['build']:.0f} to build, {seconds['step']:.0f} for the step",
    )
    table.add_row("peak memory", f"{found['peak_rss_gib']:.1f} GiB", f"left out: {found['left_out']}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=any(columns), title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index == 1 else "left")
    return table


def _peta(flops: float) -> str:
    return f"{flops / 1e15:.3f} PFLOP" if flops > 1e14 else f"{flops / 1e9:,.3f} GFLOP"
