"""`nava demo`."""

from __future__ import annotations

from pathlib import Path

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
    from experiments.report.summary import print_summary

    print_summary(layout.metrics, layout.alignment)
    print_timings(layout)
    print(f"report  {layout.reports / 'demo.html'}")
    print(f"clips   {layout.generated}/*/*.mp4")
    print(f"runs    nava ui        origins  nava lineage {layout.generated}")
