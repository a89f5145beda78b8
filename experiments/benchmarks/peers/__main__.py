"""Ours against diffusers' transformers, in one process: `python -m experiments.benchmarks.peers --out FILE`.

Training step (forward and backward) and generation step at equal width, depth, tokens and precision. Each
line says how many times as fast ours is, with its 95 % interval over alternating rounds. Video alone races
WanTransformer3DModel, video with sound LTX2VideoTransformer3DModel, a dual tower. The share of the peak
matmul throughput is by exact counts of matmul FLOPs (pretrain.model.flops). Races that FILE holds already, of
the same day and machine, stay where they are not run again.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.harness import facts
from experiments.benchmarks.peers.measure import compare
from experiments.benchmarks.peers.scaling import scaling
from experiments.benchmarks.peers.shapes import CPU_SHAPES, GPU_SHAPES, SHAPES
from pretrain.files import write_json

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def earlier(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    """What a file of the same day, machine and versions holds; else a page without races."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    return before if described.items() <= before.items() else {**described, "races": {}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="default: all that suit the device")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["bf16", "fp32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="of racing per shape and precision")
    parser.add_argument(
        "--compile", action="store_true", help="both contestants with torch.compile, block by block"
    )
    parser.add_argument(
        "--no-scaling", action="store_true", help="leave out step time against number of tokens"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device, threads = torch.device(options.device), torch.get_num_threads()
    found: dict[str, Any] = earlier(options.out, facts("diffusers", device=device))
    for name in options.shapes or (CPU_SHAPES if device.type == "cpu" else GPU_SHAPES):
        for dtype in options.dtypes:
            torch.set_num_threads(SHAPES[name].threads or threads)
            result = compare(SHAPES[name], DTYPES[dtype], device, options.seconds, options.compile)
            found["races"][f"{name}/{dtype}"] = result
            training, generation = result["training"]["times_as_fast"], result["generation"]["times_as_fast"]
            print(
                f"{name:18} {dtype}  {result['tokens_per_s']:>9,.0f} tokens/s  "
                f"{result['share_of_ceiling']:.0%} of the peak   training "
                f"{training['ratio']:.2f}x ({training['low']:.2f}..{training['high']:.2f})   generation "
                f"{generation['ratio']:.2f}x "
                f"({generation['low']:.2f}..{generation['high']:.2f})  of {result['peer']}",
                flush=True,
            )
    torch.set_num_threads(threads)
    if not options.no_scaling:
        found["scaling"] = scaling(device)
    write_json(options.out, found, indent=1)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
