"""Makes the record of TensorRT-LLM's API that its adapter is tested against::

    python -m ops.tensorrt_llm_record CHECKOUT --out tests/support/doubles/tensorrt_llm/record.json

CHECKOUT is a working copy of NVIDIA/TensorRT-LLM. Its API-stability references state the package's public names; the
record has of them what the adapter uses (``engines.tensorrt_llm.surface``): names, types, defaults, and of each file
the commit that changed it last. What the references do not hold is written down by hand beside the record, in
``by_hand.toml``, each entry with its source.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from engines.tensorrt_llm import surface

__all__ = ["main", "make_record", "uses"]

_FOLDER = Path("tests/unittest/api_stability")
_REFERENCES = ("references", "references_committed")  # what may still change, and what may not
# The package's names, by the file that states them and by the surface's.
_BY_FILE = {
    "llm.yaml": "LLM",
    "sampling_params.yaml": "SamplingParams",
    "request_output.yaml": "RequestOutput",
    "completion_output.yaml": "CompletionOutput",
}
_OBJECTS: Mapping[type, str] = {
    surface.Llm: "LLM",
    surface.RequestOutput: "RequestOutput",
    surface.CompletionOutput: "CompletionOutput",
    surface.Logprob: "Logprob",
    surface.MemoryStatus: "RuntimeMemoryStatus",
}
_FIGURES: Mapping[Any, str] = {
    surface.IterationStats: "IterationStats",
    surface.KVCacheFigures: "KVCacheStats",
}
_CLASSES: Mapping[str, str] = {
    "llm": "LLM",
    "sampling_params": "SamplingParams",
    "kv_cache_config": "KvCacheConfig",
    "scheduler_config": "SchedulerConfig",
    "sleep_config": "SleepConfig",
}
_NO_DEFAULT = "inspect._empty"


def uses() -> frozenset[str]:
    """Everything of the package that the adapter may use: ``Class.attribute``, ``Class.call()``, and
    ``Class.call(argument)`` for each argument."""
    return frozenset([*_uses_of_objects(), *_uses_of_classes()])


def _uses_of_objects() -> Iterator[str]:
    for kind, name in _OBJECTS.items():
        for member, value in vars(kind).items():
            if isinstance(value, property):
                yield f"{name}.{member}"
            elif inspect.isfunction(value) and (member == "__aiter__" or not member.startswith("_")):
                yield from _uses_of_call(f"{name}.{member}", value)
    for figures, name in _FIGURES.items():
        yield from (f"{name}.{key}" for key in figures.__annotations__)


def _uses_of_classes() -> Iterator[str]:
    makers = get_type_hints(surface.Package)
    for field, name in _CLASSES.items():
        maker = next(each for each in (makers[field], *get_args(makers[field])) if callable(each))
        yield from _uses_of_call(f"{name}.__init__", maker.__call__)


def _uses_of_call(name: str, call: Any) -> Iterator[str]:
    yield f"{name}()"
    for parameter in list(inspect.signature(call).parameters.values())[1:]:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            [arguments] = get_args(eval(parameter.annotation, vars(surface)))  # an Unpack of ours
            yield from (f"{name}({argument})" for argument in arguments.__annotations__)
        else:
            yield f"{name}({parameter.name})"


def make_record(checkout: Path, commits: Mapping[str, str]) -> dict[str, Any]:
    """The record of a working copy.

    Args:
        commits: of files, by their paths below ``tests/unittest/api_stability``; Git is asked for those of others.
    """
    import yaml

    record: dict[str, Any] = {
        "repository": "NVIDIA/TensorRT-LLM",
        "commits": {},
        "calls": {},
        "attributes": {},
    }
    for file_name, name in _BY_FILE.items():
        for part in _REFERENCES:
            path = f"{part}/{file_name}"
            read = yaml.safe_load((checkout / _FOLDER / path).read_text())
            record["commits"][path] = commits.get(path) or _commit(checkout, _FOLDER / path)
            _add(record, name, read)
    return record


def _add(record: dict[str, Any], name: str, read: Mapping[str, Any]) -> None:
    used = uses()
    methods = read.get("methods") or {}
    for call, stated in methods.items():
        if f"{name}.{call}()" in used:
            parameters = record["calls"].setdefault(f"{name}.{call}", {})
            for argument, each in stated["parameters"].items():
                is_required = each["default"] == _NO_DEFAULT and argument != "kwargs"
                if f"{name}.{call}({argument})" in used or is_required:
                    parameters[argument] = _parameter(each)
    # The fields of a dataclass are stated as its constructor's parameters.
    fields = methods.get("__init__", {}).get("parameters") or {}
    for attribute, each in {**fields, **(read.get("properties") or {})}.items():
        if f"{name}.{attribute}" in used:
            record["attributes"][f"{name}.{attribute}"] = each["annotation"]


def _parameter(stated: Mapping[str, Any]) -> dict[str, Any]:
    parameter = {"type": stated["annotation"]}
    if stated["default"] != _NO_DEFAULT:
        default = stated["default"]
        parameter["default"] = None if default == "None" else default
    return parameter


def _commit(checkout: Path, path: Path) -> str:
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%H", "--", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Runs the module's command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ops.tensorrt_llm_record", description="Make the record.")
    parser.add_argument("checkout", type=Path, help="a working copy of NVIDIA/TensorRT-LLM")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--commit",
        action="append",
        default=[],
        metavar="FILE=SHA",
        help="commit of a file, if Git cannot tell",
    )
    args = parser.parse_args()
    record = make_record(args.checkout, dict(each.split("=", 1) for each in args.commit))
    args.out.write_text(json.dumps(record, indent=2, sort_keys=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
