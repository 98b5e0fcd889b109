"""Settings: every one with a type, a default and a sentence, from flags, environment and file.

Each overrides the one after it: flags, ``MOORING_*`` variables, the TOML file, defaults. A key that is
not a setting is an error that names the nearest one that is. The environment is read here and nowhere
else; the reference page (docs/configuration.md) is generated from these classes. A section is the configuration
of a part, and the part declares it (``mooring.declared``).
"""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from engines.config import NullEngineConfig, TensorRtLlmConfig, TorchEngineConfig
from engines.kinds import engine_kind
from memory_manager.config import ManagerConfig
from memory_manager.watch.others_rule import OthersConfig
from mooring.declared import declared
from mooring.declared_models import SIZE, with_fields_of
from mooring.errors import ConfigurationError
from mooring.policy import DeploymentPolicy
from router.request.bounds import RouterConfig

__all__ = [
    "DeviceEntry",
    "ModelEntry",
    "Settings",
    "TlsFiles",
    "admin_key_from_environment",
    "has_screen",
    "load_settings",
    "onednn_max_isa_from_environment",
    "section_of",
    "server_from_environment",
    "setting_names",
    "variable_name",
]

ENV_PREFIX = "MOORING_"
ENV_NESTING = "__"
# Read by the command line and the Makefile, not settings of the server.
NOT_SETTINGS = frozenset({"MOORING_CONFIG", "MOORING_SERVER", "MOORING_ADMIN_KEY"})

Bytes = Annotated[int, SIZE]


def _known_engine(name: str) -> str:
    try:
        return engine_kind(name).name
    except ConfigurationError as error:
        raise ValueError(error.message) from error


def _host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not name or any(letter in name for letter in "/:@ "):
            raise ValueError(f"{name!r} is not the name of a host: write it without scheme and port")
    return tuple(name.lower().rstrip(".") for name in names)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@with_fields_of(DeploymentPolicy, sizes_as_text=True)
class ModelEntry(_Section):
    """A model registered and deployed when the server starts; doing so again changes nothing."""

    name: str = Field(description="What clients put in `model`.")
    source: str = Field(
        description="A local folder, a GGUF file, `hf://org/name[@revision]`, or `sample:NAME` for a sample."
    )


class DeviceEntry(_Section):
    """One of several devices, each with a budget and a worker of its own."""

    name: str = Field(
        pattern=r"^(cpu|cpu:\d+|cuda:\d+)$",
        description="`cuda:N`; `cpu`, or `cpu:0`, `cpu:1`, ... where the CPU is to be several devices.",
    )
    memory_budget: Bytes | None = Field(
        None, description="Its memory for weights and KV; needed where the CPU is several devices."
    )
    reserve_bytes: Bytes | None = Field(None, description="As the server's `reserve_bytes`.")


@cache
def section_of(part: type) -> type[BaseModel]:
    """The settings of a part: those fields of its configuration, a dataclass, that are marked as settings."""
    section = type(part.__name__, (_Section,), {"__module__": __name__})
    return with_fields_of(part, sizes_as_text=True)(section)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS on both doors.

    Attributes:
        certificate: the server's certificate, with those between it and its authority.
        key: its private key.
        client_ca: certificates of authorities; clients need a certificate of one of them. None if clients need
            no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None


class _AsSection:
    """Makes a field of ``Settings`` that is a part's configuration a section: it is read as ``section_of`` the
    part and becomes the configuration itself."""

    def __get_pydantic_core_schema__(self, part: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        section = section_of(part)
        names = [(name, each.setting.name or name) for name, each in declared(part).items() if each.setting]

        def make(given: Any, read: ValidatorFunctionWrapHandler) -> Any:
            if isinstance(given, part):
                return given
            values = read(given)
            try:
                return part(**{name: getattr(values, outside) for name, outside in names})
            except ConfigurationError as error:
                raise ValueError(error.message) from error

        return core_schema.no_info_wrap_validator_function(make, handler.generate_schema(section))


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_NESTING,
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    http_host: str = Field("127.0.0.1", description="Address of the HTTP door.")
    http_port: int = Field(8000, ge=0, le=65535, description="Port of the HTTP door; 0 takes a free one.")
    grpc_host: str = Field("127.0.0.1", description="Address of the gRPC door.")
    grpc_port: int = Field(8001, ge=0, le=65535, description="Port of the gRPC door; 0 takes a free one.")
    require_keys: bool = Field(False, description="Want keys on loopback too, as on every other address.")
    allow_anonymous: bool = Field(
        False,
        description="Serve inference without keys on addresses other than loopback and behind a proxy too.",
    )
    behind_proxy: bool = Field(
        False,
        description="A reverse proxy passes all requests on, and ends TLS: a public address then needs no TLS "
        "here, keys are wanted on loopback too, and forwarded headers (`X-Forwarded-For`, `X-Forwarded-Proto`) "
        "are believed, which they are not otherwise.",
    )
    allowed_hosts: Annotated[tuple[str, ...], AfterValidator(_host_names)] = Field(
        (),
        description="Names, without ports, for which the HTTP door serves requests beside loopback names; unset: "
        "no others on loopback, any on a public address and behind a proxy.",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file with the certificate for TLS on both doors; unset: no TLS."
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of authorities, for mutual TLS: clients of both doors need a certificate of one of "
        "them.",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Most connections of each door at a time; unset: 4096, or less if the limit of open files "
        "leaves less.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="Most connections of one address to each door at a time, a /64 network counting as one; "
        "unset: half of `max_connections`. Not applied behind a proxy.",
    )
    metrics_key_file: Path | None = Field(
        None,
        description="File with a key that reads `/metrics` and nothing else; unset: where keys are wanted, the "
        "admin key alone does.",
    )
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("mooring", appauthor=False)),
        description="Registry, artifact store and admin key.",
    )
    database_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the registry, like `postgresql://mooring@host/mooring`; unset: SQLite "
        "in the data folder.",
    )
    database_password_file: Path | None = Field(
        None, description="File with the password of `database_url`'s user; unset: the URL's own."
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="`auto`, `cpu` or `cuda:N`.")
    devices: tuple[DeviceEntry, ...] = Field(
        (), description="Several devices, in place of `device`, `memory_budget` and `reserve_bytes`."
    )
    engine: Annotated[str, AfterValidator(_known_engine)] = Field(
        "torch",
        description="Engine of new deployments: `torch`, `tensorrt_llm`, or `null`, which answers at once and runs "
        "no model.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision that weights are packed in; `auto`: the checkpoint's own, save that a 16-bit "
        "checkpoint takes the one that this machine serves several streams fastest in; the log says why.",
    )
    memory_budget: Bytes | None = Field(
        None,
        description="Device memory for weights and KV, like `512MiB`; unset: on a GPU its total less the "
        "reserve, on the CPU half of what is available; with `samples`, room for two of them and not three.",
    )
    reserve_bytes: Bytes | None = Field(
        None,
        description="Part of the device's memory left to contexts and workspace; unset: 1 GiB on a GPU, "
        "none on the CPU, where the budget is for weights and KV alone.",
    )
    host_cache_budget: Bytes | None = Field(
        None,
        description="Host memory for warm copies of weights; unset: what the devices can hold and one model more, at "
        "most half of the machine's memory less the budgets of CPU devices, at least a quarter of the machine's.",
    )
    max_head_bytes: Bytes = Field(64 << 10, description="Most of an HTTP request's line and headers.")
    request_timeout_s: float = Field(
        60.0,
        gt=0,
        description="How long an HTTP request may take to arrive, from its first byte to its last.",
    )
    max_stall_s: float | None = Field(
        None,
        gt=0,
        description="A worker whose step runs for longer is killed and started again; unset: 60 on a GPU, 600 on the "
        "CPU, where one step of a large model takes minutes.",
    )
    shutdown_grace_s: float = Field(
        30.0, ge=0, description="How long running requests may go on after SIGTERM."
    )
    ui: bool = Field(
        False, description="Start the web UI too, in a process of its own, which listens on loopback."
    )
    ui_port: int = Field(8080, ge=0, le=65535, description="Port of the web UI; 0 takes a free one.")
    max_events: int = Field(
        100_000, ge=1, description="Decisions of the memory manager that the registry keeps; the oldest go."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines."
    )
    models: tuple[ModelEntry, ...] = Field((), description="Models registered and deployed at start.")
    samples: bool = Field(
        False,
        description="Serve the three sample models too: `smollm2` is made before the server is ready, the others "
        "beside it, at idle priority.",
    )
    limits: Annotated[RouterConfig, _AsSection()] = Field(
        RouterConfig(), description="Bounds on what clients send and on what they have in flight."
    )
    planner: Annotated[ManagerConfig, _AsSection()] = Field(
        ManagerConfig(), description="When models are loaded and put to sleep."
    )
    others: Annotated[OthersConfig, _AsSection()] = Field(
        OthersConfig(),
        description="Other processes on a device: when their memory grows, ours shrinks, and grows back when it is "
        "gone.",
    )
    torch: Annotated[TorchEngineConfig, _AsSection()] = Field(
        TorchEngineConfig(), description="The torch engine's step loop."
    )
    null: Annotated[NullEngineConfig, _AsSection()] = Field(
        NullEngineConfig(), description="The engine that runs no model."
    )
    tensorrt_llm: Annotated[TensorRtLlmConfig, _AsSection()] = Field(
        TensorRtLlmConfig(),
        description="NVIDIA's TensorRT-LLM, on hosts that have it (docs/tensorrt-llm.md).",
    )

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, devices: tuple[DeviceEntry, ...]) -> tuple[DeviceEntry, ...]:
        names = [each.name for each in devices]
        if len(set(names)) < len(names):
            raise ValueError("a device is named twice")
        on_cpu = [each for each in devices if each.name.startswith("cpu")]
        if len(on_cpu) > 1 and any(each.memory_budget is None for each in on_cpu):
            raise ValueError("where the CPU is several devices, each needs a memory budget, like cpu:0=2GiB")
        return devices

    @model_validator(mode="after")
    def _check_one_way(self) -> Settings:
        """Nothing that is set goes unused: devices are named one by one or by the settings for one."""
        unused = [
            name for name in ("device", "memory_budget", "reserve_bytes") if name in self.model_fields_set
        ]
        if self.devices and unused:
            raise ValueError(f"{unused[0]} is for one device, and devices names each: give one of the two")
        return self

    @model_validator(mode="after")
    def _check_exposure(self) -> Settings:
        if self.require_keys and self.allow_anonymous:
            raise ValueError("require_keys and allow_anonymous are opposites: give one of the two")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca is for TLS: give tls_certificate and tls_key too")
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """Files for TLS on both doors; None if it is not set."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL of the registry."""
        return self.database_url or f"sqlite:///{self.data_dir / 'registry.sqlite3'}"

    @property
    def admin_key_path(self) -> Path:
        return self.data_dir / "admin.key"


def load_settings(flags: Mapping[str, Any] | None = None, config_file: Path | None = None) -> Settings:
    """Settings from flags, environment and file.

    Args:
        flags: by setting name; None values are flags that were not given. Sections are nested mappings.
        config_file: a TOML file; where None, the one ``MOORING_CONFIG`` names, or ``mooring.toml`` in the
            user's config folder if there is one.

    Raises:
        ConfigurationError: an unknown key or a bad value; the message names the setting.
    """
    _refuse_unknown_variables(os.environ)
    toml_file = _find_file(config_file)

    class FromAllSources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file)

    given = {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return FromAllSources(**given)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from error
    except (SettingsError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"the configuration cannot be read: {error}") from error


def server_from_environment() -> str | None:
    """``MOORING_SERVER``: the address of the server that the command line speaks to."""
    return os.environ.get("MOORING_SERVER")


def admin_key_from_environment() -> str | None:
    """``MOORING_ADMIN_KEY``: the admin key of a server whose data folder is not at hand."""
    return os.environ.get("MOORING_ADMIN_KEY")


def has_screen() -> bool:
    """Whether a browser of this user would have a screen to show itself on."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def onednn_max_isa_from_environment() -> str | None:
    """``ONEDNN_MAX_CPU_ISA``: the limit that the user sets to the instructions of torch's products on a CPU."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA")


def _find_file(config_file: Path | None) -> Path | None:
    named = config_file or (Path(text) if (text := os.environ.get("MOORING_CONFIG")) else None)
    if named is not None:
        if not named.is_file():
            raise ConfigurationError(f"there is no configuration file {named}")
        return named
    usual = Path(platformdirs.user_config_dir("mooring", appauthor=False)) / "mooring.toml"
    return usual if usual.is_file() else None


def setting_names(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, sections opened."""
    for name, field in section.model_fields.items():
        if is_dataclass(part := field.annotation):
            yield from setting_names(section_of(part), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def variable_name(setting: str) -> str:
    """The environment variable of a dotted setting: ``planner.max_drain_s`` is
    ``MOORING_PLANNER__MAX_DRAIN_S``."""
    return ENV_PREFIX + setting.replace(".", ENV_NESTING).upper()


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = {variable_name(name) for name in setting_names()} | NOT_SETTINGS
    known |= {
        variable_name(name) for name, f in Settings.model_fields.items() if isinstance(f.annotation, type)
    }
    for name in environment:
        if name.startswith(ENV_PREFIX) and name not in known:
            raise ConfigurationError(f"unknown setting in the environment: {name}{_nearest(name, known)}")


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting: {name}{_nearest(name, set(setting_names()))}")
        else:
            lines.append(f"setting {name}: {problem['msg']}")
    return "; ".join(lines)


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
