"""``mooring serve``: runs the server."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mooring.config import load_settings
from mooring.units import parse_bytes


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _model(text: str) -> str:
    name, separator, source = text.partition("=")
    if not (name and separator and source):
        raise typer.BadParameter(f"write it as NAME=SOURCE, not {text!r}")
    return text


def _devices(given: Sequence[str]) -> dict[str, Any]:
    """The settings that ``--device`` stands for."""
    if len(given) == 1 and "=" not in given[0]:
        return {"device": given[0]}
    entries = []
    for text in given:
        name, separator, size = text.partition("=")
        entries.append({"name": name, "memory_budget": size} if separator else {"name": name})
    return {"devices": entries or None}


def serve(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings.", dir_okay=False, exists=True)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Register and deploy it at start (repeatable). SOURCE is a folder, a GGUF file, "
            "hf://org/name, or sample:NAME.",
            parser=_model,
            metavar="NAME=SOURCE",
        ),
    ] = None,
    samples: Annotated[
        bool | None, typer.Option("--samples", help="Serve the three sample models, made here if need be.")
    ] = None,
    memory_budget: Annotated[
        int | None,
        typer.Option(parser=_size, metavar="SIZE", help="Device memory for weights and KV, like 512MiB."),
    ] = None,
    host_cache_budget: Annotated[
        int | None, typer.Option(parser=_size, metavar="SIZE", help="Host memory for warm copies of weights.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, cpu or cuda:N; for several devices NAME=SIZE (repeatable), like cpu:0=2GiB.",
            metavar="NAME[=SIZE]",
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="torch, tensorrt_llm, or null to measure the router.")
    ] = None,
    http_host: Annotated[str | None, typer.Option(help="Address of the HTTP door.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of the HTTP door.")] = None,
    grpc_host: Annotated[str | None, typer.Option(help="Address of the gRPC door.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of the gRPC door.")] = None,
    require_keys: Annotated[
        bool | None, typer.Option("--require-keys", help="Want keys on loopback too.")
    ] = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="Serve without keys on any address.")
    ] = None,
    behind_proxy: Annotated[
        bool | None,
        typer.Option("--behind-proxy", help="A reverse proxy with TLS passes all requests on; wants keys."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Serve requests for this name too (repeatable).", metavar="NAME"),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file: TLS on both doors.", dir_okay=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM file of the certificate's private key.", dir_okay=False)
    ] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file: clients need a certificate of it.", dir_okay=False)
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Registry, artifact store and admin key.", file_okay=False)
    ] = None,
    database_url: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the registry.")] = None,
    ui: Annotated[
        bool | None, typer.Option("--ui", help="Start the web UI too, in a process of its own, on loopback.")
    ] = None,
    ui_port: Annotated[int | None, typer.Option(help="Port of the web UI.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C. docs/configuration.md has every setting."""
    flags = {
        "samples": samples,
        "memory_budget": memory_budget,
        "host_cache_budget": host_cache_budget,
        **_devices(device or []),
        "dtype": dtype,
        "engine": engine,
        "http_host": http_host,
        "http_port": http_port,
        "grpc_host": grpc_host,
        "grpc_port": grpc_port,
        "require_keys": require_keys,
        "allow_anonymous": allow_anonymous,
        "behind_proxy": behind_proxy,
        "allowed_hosts": allowed_host or None,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "data_dir": data_dir or context.obj.data_dir,
        "database_url": database_url,
        "ui": ui,
        "ui_port": ui_port,
        "log_level": log_level,
        "models": [dict(zip(("name", "source"), entry.split("=", 1), strict=True)) for entry in model or ()]
        or None,
    }
    settings = load_settings(flags, config)
    # gRPC reads this variable when it is imported. We start workers by exec, never by a bare fork, and gRPC's
    # handlers for forks would only complain of the threads that they find.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    gc.disable()  # all that is imported stays, and collections would look at it again and again
    from mooring.server.server import run  # the doors and the registry take half a second to import

    gc.freeze()
    gc.enable()
    run(settings)
