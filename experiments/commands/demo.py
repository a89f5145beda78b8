"""`nava demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.pipeline.demo import print_timings, run_pipeline, up_to_date


def demo() -> None:
    """Train the small NAVA of params.yaml, align it, generate clips with speech, and report their scores.

    Runs the stages that `dvc repro` finds out of date. Start it in the repository root.
    """
    root, layout = Path(), Layout()
    if not (root / "dvc.yaml").is_file():
        raise FileNotFoundError("dvc.yaml: no such file here; run this in the repository root")
    if up_to_date(root):
        print("nothing to do: data, model and report are up to date with code and params.yaml\n")
    else:
        run_pipeline(root, layout)
    show_result(layout)


def show_result(layout: Layout) -> None:
    """The report's numbers, where the time went, and where to look next."""
    from experiments.report.gates import check_gates, read_reports
    from experiments.report.summary import print_gates, print_summary

    reports = read_reports(layout.metrics, layout.alignment)
    print_summary(reports)
    print_gates(check_gates(_recipe().evaluate.gates, reports))
    print_timings(layout)
    print(f"report  {layout.reports / 'demo.html'}")
    print(f"clips   {layout.generated}/*/*.mp4")
    print(f"runs    nava ui        origins  nava lineage {layout.generated}")


def _recipe() -> Any:
    """The recipe that the stages of dvc.yaml run with."""
    from experiments.recipes.load import load_recipe, read_params

    params = Path("params.yaml")
    return load_recipe(read_params(params).get("recipe", "mini"), params)
