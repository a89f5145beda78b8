"""ComfyUI's side of a node pack, as its documentation describes it: the interface of nodes, and workflows.

docs.comfy.org, "Custom nodes: properties, datatypes, lifecycle": INPUT_TYPES is a class method that answers
{required, optional, hidden: {name: (type, options)}}, where a type is a name or a list of choices;
RETURN_TYPES, RETURN_NAMES, FUNCTION, CATEGORY and OUTPUT_NODE are attributes; a workflow in API form is
{id: {class_type, inputs}}, where an input is a value or a link [id, number of an output].
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PLAIN = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
TENSORS = {"IMAGE", "AUDIO", "MASK", "LATENT"}
OPTIONS = {
    "INT": {"default", "min", "max", "step", "control_after_generate", "tooltip", "display", "forceInput"},
    "FLOAT": {"default", "min", "max", "step", "round", "tooltip", "display", "forceInput"},
    "STRING": {"default", "multiline", "placeholder", "dynamicPrompts", "tooltip", "forceInput"},
    "BOOLEAN": {"default", "label_on", "label_off", "tooltip", "forceInput"},
}


def load_pack(folder: Path, name: str = "comfyui_pack") -> ModuleType:
    """As ComfyUI imports a folder of custom_nodes: from its path, under a name of its choice."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def problems(pack: ModuleType) -> list[str]:
    """What is wrong with the nodes of a pack."""
    nodes = getattr(pack, "NODE_CLASS_MAPPINGS", None)
    if not isinstance(nodes, dict) or not nodes:
        return ["NODE_CLASS_MAPPINGS: no mapping of names to classes"]
    names = getattr(pack, "NODE_DISPLAY_NAME_MAPPINGS", {})
    found = [f"{name}: has a display name and is no node" for name in names if name not in nodes]
    made = {kind for node in nodes.values() for kind in getattr(node, "RETURN_TYPES", ())}
    for name, node in nodes.items():
        found += [f"{name}: {wrong}" for wrong in (*_of_outputs(node), *_of_inputs(node, made))]
    return found


def _of_outputs(node: type) -> list[str]:
    found = []
    kinds = getattr(node, "RETURN_TYPES", None)
    if not isinstance(kinds, tuple) or not all(isinstance(kind, str) for kind in kinds):
        return [f"RETURN_TYPES: expected a tuple of names, got {kinds!r}"]
    names = getattr(node, "RETURN_NAMES", kinds)
    if len(names) != len(kinds):
        found.append(f"RETURN_NAMES: {len(names)} for {len(kinds)} outputs")
    if not isinstance(getattr(node, "CATEGORY", None), str):
        found.append("CATEGORY: no text")
    if not kinds and getattr(node, "OUTPUT_NODE", False) is not True:
        found.append("no output, and OUTPUT_NODE is not True: it would never run")
    return found


def _of_inputs(node: type, made: set[str]) -> list[str]:
    if not isinstance(inspect.getattr_static(node, "INPUT_TYPES", None), classmethod):
        return ["INPUT_TYPES: no class method"]
    inputs = node.INPUT_TYPES()  # type: ignore[attr-defined]
    found = [
        f"INPUT_TYPES: unknown group {name}" for name in inputs.keys() - {"required", "optional", "hidden"}
    ]
    work = getattr(node, getattr(node, "FUNCTION", ""), None)
    if not callable(work):
        return [*found, "FUNCTION: names no method"]
    parameters = inspect.signature(work).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    for group in ("required", "optional"):
        for name, given in inputs.get(group, {}).items():
            if not isinstance(given, tuple) or not 1 <= len(given) <= 2:
                found.append(f"{name}: expected (type,) or (type, options), got {given!r}")
                continue
            options = given[1] if len(given) == 2 else {}
            found += [f"{name}: {wrong}" for wrong in _of_type(given[0], options, made)]
            if name not in parameters and not takes_any:
                found.append(f"{name}: {work.__name__} does not take it")
            if (
                group == "optional"
                and name in parameters
                and parameters[name].default is inspect.Parameter.empty
            ):
                found.append(f"{name}: optional, and {work.__name__} needs it")
    return found


def _of_type(kind: Any, options: Mapping[str, Any], made: set[str]) -> list[str]:
    if isinstance(kind, list):
        wrong = "default" in options and options["default"] not in kind
        return [f"default {options['default']!r} is none of the choices"] if wrong else []
    if kind not in PLAIN:
        return [] if kind in TENSORS | made else [f"{kind!r} is no type of ComfyUI and no node makes it"]
    found = [f"unknown option {name}" for name in options.keys() - OPTIONS[kind]]
    default = options.get("default")
    if default is not None and not isinstance(default, PLAIN[kind]):
        found.append(f"default {default!r} is no {kind}")
    if kind in ("INT", "FLOAT") and not options.get("min", 0) <= (default or 0) <= options.get("max", 2**64):
        found.append(f"default {default!r} is outside min and max")
    return found


def run_workflow(pack: ModuleType, workflow: Mapping[str, Any]) -> dict[str, Any]:
    """What every node of a workflow in API form answers, each run once, as an output node asks for it.

    Raises ValueError, as ComfyUI does before anything runs, for inputs that are missing or of a wrong type.
    """
    nodes = pack.NODE_CLASS_MAPPINGS
    for id, step in workflow.items():
        _check_step(id, step, workflow, nodes)
    answers: dict[str, Any] = {}

    def answer(id: str) -> Any:
        if id not in answers:
            step = workflow[id]
            node = nodes[step["class_type"]]
            given = {
                name: answer(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in step["inputs"].items()
            }
            answers[id] = getattr(node(), node.FUNCTION)(**given)
            _check_answer(node, answers[id])
        return answers[id]

    for id, step in workflow.items():
        if getattr(nodes[step["class_type"]], "OUTPUT_NODE", False):
            answer(id)
    return answers


def _check_step(
    id: str, step: Mapping[str, Any], workflow: Mapping[str, Any], nodes: Mapping[str, Any]
) -> None:
    inputs = nodes[step["class_type"]].INPUT_TYPES()
    known = {**inputs.get("required", {}), **inputs.get("optional", {})}
    for name in inputs.get("required", {}):
        if name not in step["inputs"]:
            raise ValueError(f"{id}: required input {name} is missing")
    for name, value in step["inputs"].items():
        kind, options = known[name][0], (known[name][1] if len(known[name]) == 2 else {})
        if isinstance(value, list):
            made = nodes[workflow[value[0]]["class_type"]].RETURN_TYPES[value[1]]
            if made != kind:
                raise ValueError(f"{id}: {name} takes {kind}, linked is {made}")
        elif isinstance(kind, list):
            if value not in kind:
                raise ValueError(f"{id}: {name}: {value!r} is none of {kind}")
        elif kind in PLAIN and not isinstance(value, PLAIN[kind]):
            raise ValueError(f"{id}: {name}: {value!r} is no {kind}")
        elif kind in ("INT", "FLOAT") and not options.get("min", value) <= value <= options.get("max", value):
            raise ValueError(f"{id}: {name}: {value!r} is outside min and max")


def _check_answer(node: type, answer: Any) -> None:
    """Outputs are what their types say, in ComfyUI's form."""
    if isinstance(answer, dict):
        assert set(answer) <= {"ui", "result"}, answer
        return
    kinds = node.RETURN_TYPES  # type: ignore[attr-defined]
    assert isinstance(answer, tuple) and len(answer) == len(kinds), f"{node.__name__}: {answer!r}"
    for kind, value in zip(kinds, answer, strict=True):
        if kind == "IMAGE":
            assert value.ndim == 4 and value.shape[-1] == 3 and value.dtype is torch.float32
            assert float(value.min()) >= 0 and float(value.max()) <= 1
        if kind == "AUDIO" and value is not None:
            assert set(value) == {"waveform", "sample_rate"} and value["waveform"].ndim == 3
            assert value["waveform"].dtype is torch.float32 and isinstance(value["sample_rate"], int)
        if kind in PLAIN:
            assert isinstance(value, PLAIN[kind])
