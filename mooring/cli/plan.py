"""``mooring plan``: arithmetic to do before anything is bought or loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.checkpoint.model_config import ModelConfig
from memory_manager.watch.devices import default_budget_bytes
from mooring.cli.connection import Connection
from mooring.cli.output import Json, console, print_json, print_table
from mooring.errors import ConfigurationError
from mooring.units import format_bytes, parse_bytes
from ops.capacity.memory import (
    DEVICES,
    KV_DTYPES,
    MemoryPlan,
    PlannedModel,
    builtin_shapes,
    model_from_folder,
    model_from_shape,
    plan_memory,
)

app = typer.Typer(help="Work out what a model needs before it is loaded.", no_args_is_help=True)


@app.callback()
def _plan() -> None:
    """Work out what a model needs before it is loaded."""


@app.command()
def memory(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A registered model, a folder with config.json, or a shape like llama-3-8b.")
    ],
    context_tokens: Annotated[
        int, typer.Option("--context", min=1, help="Prompt plus output of each request, in tokens.")
    ],
    batch: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="Of the weights: bf16 or fp32; the model's own.")] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help=f"Of the KV: {', '.join(KV_DTYPES)}; the weights' own.")
    ] = None,
    device_memory: Annotated[str | None, typer.Option(help="A device of this size, like 80GiB.")] = None,
    device: Annotated[
        str | None, typer.Option(help=f"{', '.join(DEVICES)}; or cpu, cuda:N: what is in this machine.")
    ] = None,
    reserve: Annotated[
        str | None,
        typer.Option(help="Of the device, for contexts and workspace; 1GiB on a GPU, 0 on the CPU."),
    ] = None,
    json: Json = False,
) -> None:
    """Show the exact bytes of weights and KV, what fits, and where KV overtakes the weights."""
    if kv_dtype is not None and kv_dtype not in KV_DTYPES:
        raise ConfigurationError(f"--kv-dtype is one of {', '.join(KV_DTYPES)}, not {kv_dtype}")
    device_bytes, reserve_bytes = _device(device, device_memory, reserve)
    plan = plan_memory(
        _find(context.obj, model),
        context_tokens=context_tokens,
        batch=batch,
        precision=dtype,
        kv_dtype=kv_dtype,
        device=device,
        device_bytes=device_bytes,
        reserve_bytes=reserve_bytes,
    )
    if json:
        print_json(dataclasses.asdict(plan))
    else:
        _print(plan)


@app.command()
def fit(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(help="A deployment, a registered model, a folder, a GGUF file, or hf://org/name.")
    ],
    json: Json = False,
) -> None:
    """Ask the server how a model would fit on each of its devices now, and who would have to leave."""
    connection: Connection = context.obj
    found = connection.post("/fit", {_kind(connection, what): _absolute(what)})["devices"]
    if json:
        return print_json(found)
    rows = [
        (
            device,
            each["verdict"].replace("_", " "),
            format_bytes(each["free_bytes"]),
            f"{each['takes_s']:.2g} s",
            each["message"],
            ", ".join(f"{gone['deployment']} ({format_bytes(gone['bytes'])})" for gone in each["leaving"]),
        )
        for device, each in found.items()
    ]
    return print_table(
        ("device", "verdict", "free#", "takes#", "", "would leave"), rows, "There is no device."
    )


def _kind(connection: Connection, what: str) -> str:
    """The member of the question that names it."""
    if what.startswith("hf://") or Path(what).expanduser().exists():
        return "source"
    deployed = {each["name"] for each in connection.get_all("/deployments")}
    return "deployment" if what in deployed else "model"


def _absolute(what: str) -> str:
    path = Path(what).expanduser()
    return str(path.resolve()) if not what.startswith("hf://") and path.exists() else what


def _find(connection: Connection, name: str) -> PlannedModel:
    """The built-in shape of that name, else the folder, else the model that the server has registered."""
    if name in builtin_shapes():
        return model_from_shape(name)
    if Path(name).expanduser().is_dir():
        return model_from_folder(Path(name).expanduser())
    latest: dict[str, Any] = max(connection.get(f"/models/{name}/versions"), key=lambda each: each["number"])
    return PlannedModel(name, ModelConfig.from_dict(latest["config"]), latest["default_precision"])


def _device(name: str | None, size: str | None, reserve: str | None) -> tuple[int | None, int]:
    """Bytes of the device (None if there is none) and of its reserve."""
    from mooring.server.devices import DEFAULT_GPU_RESERVE_BYTES, device_reader  # they import numpy

    if name is not None and size is not None:
        raise ConfigurationError(
            "--device and --device-memory are two ways to say one thing: give one of them"
        )
    on_gpu = name is not None and name != "cpu"
    try:
        reserve_bytes = parse_bytes(reserve) if reserve is not None else on_gpu * DEFAULT_GPU_RESERVE_BYTES
        if name is None:
            return None if size is None else parse_bytes(size), reserve_bytes
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if name in DEVICES:
        return DEVICES[name], reserve_bytes
    if name != "cpu" and not name.removeprefix("cuda:").isdigit():
        raise ConfigurationError(f"no device {name!r}; there are {', '.join(DEVICES)}, cpu and cuda:N")
    memory = device_reader(name, set).read()
    if memory is None:
        raise ConfigurationError(f"{name} cannot be read: give --device-memory")
    return default_budget_bytes(memory, 0), reserve_bytes


def _print(plan: MemoryPlan) -> None:
    out = console()
    out.rule(
        f"{plan.model}: {plan.batch} × {plan.context_tokens:,} tokens, weights {plan.precision}, "
        f"KV {plan.kv_dtype}",
        align="left",
    )
    if plan.note:
        out.print(plan.note)
    rows = [
        ("weights", plan.weights_bytes, "packed"),
        ("", plan.weights_page_bytes, "in pages of 2 MiB"),
        ("KV of a token", plan.kv_bytes_per_token, "all layers, before any window has passed"),
        ("KV of a request", plan.kv_bytes_per_request, "in pages, alone; a worker always keeps as much"),
        ("KV of the batch", plan.kv_bytes, "in pages"),
        ("  tokens", plan.kv_token_bytes, ""),
        ("  part-filled blocks", plan.kv_unfilled_bytes, ""),
        ("  page tails", plan.kv_tail_bytes, "and places for blocks that nobody has taken"),
        ("workspace of a step", plan.workspace_bytes, "at most, out of the reserve"),
        ("reserve", plan.reserve_bytes, ""),
        ("total", plan.total_bytes, "weights, KV, the pool's null page, reserve"),
    ]
    print_table(
        ("", "bytes#", "#", ""),
        [(name, f"{size:,}", format_bytes(size), remark) for name, size, remark in rows],
        "",
    )
    _print_groups(plan)
    _print_fit(plan)


def _print_groups(plan: MemoryPlan) -> None:
    rows = [
        (
            each.layers,
            each.kind if each.window_tokens is None else f"last {each.window_tokens:,}",
            f"{each.bytes_per_token:,}",
            each.block_tokens,
            f"{each.block_bytes:,}",
            each.blocks_per_page,
            f"{each.page_tail_bytes:,}",
            f"{each.blocks_per_request:,}",
        )
        for each in plan.groups
    ]
    columns = (
        "layers#", "attends to", "bytes a token#", "tokens a block#", "bytes a block#", "blocks a page#",
        "tail of a page#", "blocks a request#",
    )  # fmt: skip
    print_table(columns, rows, "")


def _print_fit(plan: MemoryPlan) -> None:
    out = console()
    if plan.device_bytes is not None:
        word = "fits" if plan.fits else "does not fit"
        where = plan.device or "the device"
        out.print(
            f"{word} on {where} ({format_bytes(plan.device_bytes)}): at {plan.context_tokens:,} tokens a batch of "
            f"{plan.max_batch:,} does, at a batch of {plan.batch:,} {plan.max_context:,} tokens do",
            soft_wrap=True,
        )
    context = plan.kv_exceeds_weights_context
    at_batch = f"from {context:,} tokens on" if context is not None else "at no length that the model knows"
    out.print(
        f"KV takes more than the weights from a batch of {plan.kv_exceeds_weights_batch:,} on at "
        f"{plan.context_tokens:,} tokens, and {at_batch} at a batch of {plan.batch:,}",
        soft_wrap=True,
    )
