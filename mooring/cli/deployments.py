"""``mooring deployments``: which models are served, and how they are treated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from mooring.cli.output import Json, console, print_json, print_table
from mooring.errors import InvalidRequestError
from mooring.units import parse_bytes

app = typer.Typer(help="Create, change, wake and put to sleep what is served.", no_args_is_help=True)

Pinned = Annotated[bool | None, typer.Option("--pinned/--no-pinned", help="Never put to sleep.")]
Enabled = Annotated[bool | None, typer.Option("--enabled/--disabled", help="Serve it at all.")]
Priority = Annotated[int | None, typer.Option(help="Higher is served first and evicted last.")]
MaxLen = Annotated[int | None, typer.Option(min=1, help="Longest prompt plus output, in tokens.")]
Guarantee = Annotated[
    str | None,
    typer.Option(
        help="KV that no other model can take, like 64MiB; never less than a longest request needs."
    ),
]
Cap = Annotated[str | None, typer.Option(help="Most KV it may hold, like 1GiB.")]
IdleTimeout = Annotated[float | None, typer.Option(help="Seconds without a request before it sleeps.")]
MinReplicas = Annotated[
    int | None, typer.Option(min=0, help="Replicas that stay resident whether requests come or not.")
]
MaxReplicas = Annotated[
    int | None, typer.Option(min=1, help="Replicas that load may bring, one on each device.")
]
Prefixes = Annotated[
    Literal["tenant", "shared", "off"] | None,
    typer.Option(
        "--prefix-cache", help="Who shares computed prefixes: requests of one tenant, all, or none."
    ),
]

# Named as the policy's fields. The two sizes are not among these: they are text here and bytes there.
_POLICY_OPTIONS = (
    "enabled",
    "pinned",
    "priority",
    "max_model_len",
    "idle_timeout_s",
    "min_replicas",
    "max_replicas",
    "prefix_cache",
)


@app.command("list")
def list_deployments(context: typer.Context, json: Json = False) -> None:
    """List deployments."""
    deployments = context.obj.get("/deployments")
    if json:
        return print_json(deployments)
    rows = [
        (d["name"], f"{d['model']}:{d['version']}", d["precision"], d["engine"], d["residency"],
         "yes" if d["policy"]["pinned"] else "", d["policy"]["priority"], d["reason"])
        for d in deployments
    ]  # fmt: skip
    columns = ("name", "version", "precision", "engine", "residency", "pinned", "priority#", "reason")
    return print_table(columns, rows, "Nothing is deployed.")


@app.command()
def show(context: typer.Context, name: str, json: Json = False) -> None:
    """Show one deployment and its policy."""
    found = context.obj.get(f"/deployments/{name}")
    if json:
        return print_json(found)
    settings = {**found, **found["policy"]}
    del settings["policy"]
    rows = [
        (key, ("no", "yes")[value] if isinstance(value, bool) else value) for key, value in settings.items()
    ]
    return print_table(("setting", "value"), rows, "")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What clients will put in `model`.")],
    model: Annotated[str, typer.Argument(help="A registered model.")],
    version: Annotated[int | None, typer.Option(help="The latest where not given.")] = None,
    enabled: Enabled = None,
    pinned: Pinned = None,
    priority: Priority = None,
    max_model_len: MaxLen = None,
    kv_guarantee: Guarantee = None,
    kv_cap: Cap = None,
    idle_timeout_s: IdleTimeout = None,
    min_replicas: MinReplicas = None,
    max_replicas: MaxReplicas = None,
    prefix_cache: Prefixes = None,
) -> None:
    """Deploy a registered model."""
    policy = _policy(context)
    context.obj.post("/deployments", {"name": name, "model": model, "version": version, "policy": policy})
    console().print(f"{name} is deployed.")


@app.command()
def update(
    context: typer.Context,
    name: str,
    version: Annotated[int | None, typer.Option(help="Another version of its model.")] = None,
    enabled: Enabled = None,
    pinned: Pinned = None,
    priority: Priority = None,
    max_model_len: MaxLen = None,
    kv_guarantee: Guarantee = None,
    kv_cap: Cap = None,
    idle_timeout_s: IdleTimeout = None,
    min_replicas: MinReplicas = None,
    max_replicas: MaxReplicas = None,
    prefix_cache: Prefixes = None,
) -> None:
    """Change how a deployment is treated."""
    changes = _policy(context)
    if version is not None:
        changes["version"] = version
    if not changes:
        raise InvalidRequestError("nothing to change: give at least one option (see --help)")
    context.obj.patch(f"/deployments/{name}", changes)
    console().print(f"{name} is changed.")


@app.command()
def delete(context: typer.Context, name: str) -> None:
    """Stop serving a deployment; the model stays registered."""
    context.obj.delete(f"/deployments/{name}")
    console().print(f"{name} is deleted.")


@app.command()
def sleep(context: typer.Context, name: str) -> None:
    """Take a deployment off its device, once its running requests have ended."""
    context.obj.post(f"/deployments/{name}/sleep")
    console().print(f"{name} sleeps.")


@app.command()
def wake(context: typer.Context, name: str) -> None:
    """Bring a deployment to its device."""
    context.obj.post(f"/deployments/{name}/wake")
    console().print(f"{name} is resident.")


def _policy(context: typer.Context) -> dict[str, Any]:
    """The options of ``create`` and ``update`` that are about policy and were given, as the admin API names
    them."""
    given = {name: context.params[name] for name in _POLICY_OPTIONS} | {
        "kv_guarantee_bytes": _size("--kv-guarantee", context.params["kv_guarantee"]),
        "kv_cap_bytes": _size("--kv-cap", context.params["kv_cap"]),
    }
    return {key: value for key, value in given.items() if value is not None}


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
