"""What a person sees first in MLflow: the list of runs with its columns, and descriptions with links.

MLflow keeps a shared view of an experiment's runs as a tag of the experiment, JSON of the state of its page;
a link with `viewStateShareKey` opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from experiments.runs.spool import RUN_LINK

VIEW_KEY = "nava"
VIEW = f"mlflow.sharedViewState.{VIEW_KEY}"  # tag of the experiment
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # opens with runs and models, not with traces
    "mlflow.note.content": "Pretraining and alignment of joint audio-video models. One row is one command; "
    "its stages are below it.",
}
MOST_COLUMNS = 12
# columns that MLflow always shows, by its ids -> width in pixels: check boxes, name, time, duration
_FIRST = {"1": 73, "attributes.`Run Name`": 290, "runDateAndNestInfo": 130, "duration": 80}
_ALWAYS = ("attributes.`Models`",)
_WIDTH = 150  # of a metric's column


def with_columns(view: str | None, metrics: Sequence[str]) -> str:
    """The view (JSON, None = there is none) with columns of these metrics, those it has first."""
    try:
        state = json.loads(view) if view else {}
    except ValueError:
        state = {}
    had = [name for name in state.get("selectedColumns", ()) if name not in _ALWAYS]
    given = [f"metrics.`{name}`" for name in metrics]
    columns = list(dict.fromkeys([*had, *given]))[:MOST_COLUMNS]
    order = [*_FIRST, *columns, *_ALWAYS]
    widths = {**{column: _WIDTH for column in columns}, **_FIRST}
    view_of = {"selectedColumns": [*columns, *_ALWAYS], "columnOrder": order, "columnWidths": widths}
    return json.dumps({**state, **view_of}, sort_keys=True)


def with_links(text: str, experiment_id: str, run_ids: Mapping[str, str]) -> str:
    """Markdown whose links to runs by key are links in MLflow; those to unknown runs lead to the list."""

    def link(key: str) -> str:
        run_id = run_ids.get(key, "")
        return f"(#/experiments/{experiment_id}/runs{f'/{run_id}' if run_id else ''})"

    return RUN_LINK.sub(lambda match: link(match[1]), text)


def page_of(experiment_id: str) -> str:
    """Path in MLflow's page of the list of runs with these columns."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW_KEY}&workflowType=machine_learning"
