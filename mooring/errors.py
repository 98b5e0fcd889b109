"""Every error that Mooring raises on purpose, as one tree.

::

    MooringError
    ├── CallerError             the caller must change the request
    │   ├── InvalidRequestError       a field is wrong (names it in ``param``)
    │   │   ├── ContextLengthError
    │   │   ├── UnsupportedFieldError
    │   │   └── RequestTooLargeError
    │   ├── AuthenticationError
    │   ├── PermissionDeniedError
    │   ├── ModelNotFoundError
    │   ├── NotFoundError             anything else that has a name
    │   ├── MisdirectedRequestError   meant for another server, or made to look so
    │   ├── UnsupportedMediaTypeError a body of a type that is not read
    │   ├── UnsupportedCallError      a call of the protocol that is not served
    │   └── ConflictError             the name is taken, or the state forbids it
    ├── TransientError          will pass by itself: try again
    │   ├── RateLimitError            the tenant's own limit
    │   ├── OverloadedError           our capacity
    │   ├── ModelUnavailableError     disabled, or failed to load
    │   ├── ModelNotReadyError        is still being made
    │   ├── WorkerLostError           the engine's process died
    │   ├── RegistryUnavailableError  the registry's database does not answer
    │   ├── DeadlineExceededError     the caller's own limit has passed
    │   └── ShuttingDownError
    └── OperatorError           whoever runs the server must mend something
        ├── ConfigurationError
        ├── ArtifactError             a model's files are broken, unsafe or unsupported
        ├── HostCopyAlteredError      something wrote to weights in host memory
        ├── InsufficientMemoryError   can never fit the budget as configured
        ├── FeatureAbsentError        a part that this server was built without
        ├── PoisonousRequestError     a request that kills the workers it runs on
        └── InternalError             a bug of ours

This module imports nothing of the project, so every package may use it. ``STATUS`` maps each leaf to
its HTTP status, gRPC status name and OpenAI ``type``; the front doors read that table and nothing else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = [
    "STATUS",
    "ArtifactError",
    "AuthenticationError",
    "CallerError",
    "ConfigurationError",
    "ConflictError",
    "ContextLengthError",
    "DeadlineExceededError",
    "FeatureAbsentError",
    "HostCopyAlteredError",
    "InsufficientMemoryError",
    "InternalError",
    "InvalidRequestError",
    "MisdirectedRequestError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelUnavailableError",
    "MooringError",
    "NotFoundError",
    "OperatorError",
    "OverloadedError",
    "PermissionDeniedError",
    "PoisonousRequestError",
    "RateLimitError",
    "RegistryUnavailableError",
    "RequestTooLargeError",
    "ShuttingDownError",
    "Status",
    "TransientError",
    "UnsupportedCallError",
    "UnsupportedFieldError",
    "UnsupportedMediaTypeError",
    "WorkerLostError",
    "error_from_code",
    "retry_advice",
    "status_of",
]


class MooringError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        message: one sentence for whoever reads it, saying what to do.
        code: a stable machine-readable word (OpenAI's own if it has one).
        param: the name of the field at fault, bare, or None.
        retry_after_s: seconds after which a retry may succeed, or None.
        predicted_wait_s: seconds after which a request that was refused would have had its first token, or None.
        should_retry: whether the same request may be sent again by itself, as OpenAI's clients do.
    """

    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        predicted_wait_s: float | None = None,
        should_retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.predicted_wait_s = predicted_wait_s
        self.should_retry = should_retry
        if code is not None:
            self.code = code

    @property
    def predicted_wait_ms(self) -> int | None:
        """``predicted_wait_s`` in whole milliseconds, rounded up."""
        return None if self.predicted_wait_s is None else math.ceil(1000 * self.predicted_wait_s)


class CallerError(MooringError):
    """The caller must change the request."""


class InvalidRequestError(CallerError):
    """A field of the request is wrong; ``param`` names it."""

    code = "invalid_value"


class ContextLengthError(InvalidRequestError):
    """Prompt and requested output do not fit the model's context."""

    code = "context_length_exceeded"


class UnsupportedFieldError(InvalidRequestError):
    """A field that exists in the protocol and that this server does not serve."""

    code = "unsupported_parameter"


class RequestTooLargeError(InvalidRequestError):
    """The body is larger than the server accepts."""

    code = "request_too_large"


class AuthenticationError(CallerError):
    """There is no key, or it is not known."""

    code = "invalid_api_key"


class PermissionDeniedError(CallerError):
    """A known key that may not do this."""

    code = "permission_denied"


class ModelNotFoundError(CallerError):
    """There is no deployment of that name."""

    code = "model_not_found"


class NotFoundError(CallerError):
    """There is nothing of that name."""

    code = "not_found"


class MisdirectedRequestError(CallerError):
    """The request names another server than this one."""

    code = "misdirected_request"


class UnsupportedMediaTypeError(CallerError):
    """The body is of a type that is not read."""

    code = "unsupported_media_type"


class UnsupportedCallError(CallerError):
    """A call that exists in the protocol and that this server does not serve."""

    code = "unsupported_call"


class ConflictError(CallerError):
    """The name is taken, or the present state forbids the change."""

    code = "conflict"


class TransientError(MooringError):
    """An error that will pass by itself."""


class RateLimitError(TransientError):
    """The tenant's own limit."""

    code = "rate_limit_exceeded"


class OverloadedError(TransientError):
    """Our capacity is spent; the queue is full or the wait too long."""

    code = "server_overloaded"


class ModelUnavailableError(TransientError):
    """The deployment is disabled or failed."""

    code = "model_unavailable"


class ModelNotReadyError(TransientError):
    """The model is still being made; the message says how far that is."""

    code = "model_not_ready"


class WorkerLostError(TransientError):
    """The engine's process died while it held this request."""

    code = "worker_lost"


class RegistryUnavailableError(TransientError):
    """The registry's database does not answer."""

    code = "registry_unavailable"


class DeadlineExceededError(TransientError):
    """The request took longer than the caller allowed it to."""

    code = "deadline_exceeded"


class ShuttingDownError(TransientError):
    """The server is draining."""

    code = "shutting_down"


class OperatorError(MooringError):
    """Whoever runs the server must mend something."""


class ConfigurationError(OperatorError):
    """A setting is missing or wrong; the message names it."""

    code = "invalid_configuration"


class ArtifactError(OperatorError):
    """A model's files are broken, unsafe or of an unsupported kind."""

    code = "invalid_artifact"


class HostCopyAlteredError(OperatorError):
    """A host copy differs from what was read from storage: something wrote to it. It is read again."""

    code = "host_copy_altered"


class InsufficientMemoryError(OperatorError):
    """The memory budget, as it is configured, can never hold what is needed."""

    code = "insufficient_memory"


class FeatureAbsentError(OperatorError):
    """A part of another server of the same protocol that this one does not have."""

    code = "feature_absent"


class PoisonousRequestError(OperatorError):
    """The request kills the workers it runs on and is not tried again."""

    code = "poisonous_request"


class InternalError(OperatorError):
    """A bug of ours."""

    code = "internal_error"


class Status(NamedTuple):
    """The form that an error takes at the front doors."""

    http: int
    grpc: str  # the name of a grpc.StatusCode
    openai_type: str


STATUS: dict[type[MooringError], Status] = {
    InvalidRequestError: Status(400, "INVALID_ARGUMENT", "invalid_request_error"),
    ContextLengthError: Status(400, "INVALID_ARGUMENT", "invalid_request_error"),
    UnsupportedFieldError: Status(400, "INVALID_ARGUMENT", "invalid_request_error"),
    RequestTooLargeError: Status(413, "RESOURCE_EXHAUSTED", "invalid_request_error"),
    AuthenticationError: Status(401, "UNAUTHENTICATED", "authentication_error"),
    PermissionDeniedError: Status(403, "PERMISSION_DENIED", "permission_error"),
    ModelNotFoundError: Status(404, "NOT_FOUND", "invalid_request_error"),
    NotFoundError: Status(404, "NOT_FOUND", "invalid_request_error"),
    MisdirectedRequestError: Status(421, "INVALID_ARGUMENT", "invalid_request_error"),
    UnsupportedMediaTypeError: Status(415, "INVALID_ARGUMENT", "invalid_request_error"),
    UnsupportedCallError: Status(501, "UNIMPLEMENTED", "invalid_request_error"),
    ConflictError: Status(409, "ALREADY_EXISTS", "invalid_request_error"),
    RateLimitError: Status(429, "RESOURCE_EXHAUSTED", "rate_limit_error"),
    OverloadedError: Status(503, "UNAVAILABLE", "server_error"),
    ModelUnavailableError: Status(503, "UNAVAILABLE", "server_error"),
    ModelNotReadyError: Status(503, "UNAVAILABLE", "server_error"),
    WorkerLostError: Status(503, "UNAVAILABLE", "server_error"),
    RegistryUnavailableError: Status(503, "UNAVAILABLE", "server_error"),
    DeadlineExceededError: Status(504, "DEADLINE_EXCEEDED", "server_error"),
    ShuttingDownError: Status(503, "UNAVAILABLE", "server_error"),
    ConfigurationError: Status(500, "FAILED_PRECONDITION", "server_error"),
    ArtifactError: Status(422, "FAILED_PRECONDITION", "invalid_request_error"),
    HostCopyAlteredError: Status(500, "INTERNAL", "server_error"),
    InsufficientMemoryError: Status(507, "FAILED_PRECONDITION", "server_error"),
    FeatureAbsentError: Status(503, "UNAVAILABLE", "server_error"),
    PoisonousRequestError: Status(500, "INTERNAL", "server_error"),
    InternalError: Status(500, "INTERNAL", "server_error"),
}

_BY_CODE: dict[str, type[MooringError]] = {cls.code: cls for cls in STATUS}


def status_of(error: MooringError) -> Status:
    """The row of ``STATUS`` for this error, by its nearest mapped class."""
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    return STATUS[InternalError]


def retry_advice(error: MooringError) -> dict[str, str]:
    """Pairs that tell a client whether and when to come again: headers of HTTP, trailing metadata of gRPC. OpenAI's
    clients go by the last two before they go by the first."""
    advice = {}
    if error.retry_after_s is not None:
        advice["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        advice["retry-after-ms"] = str(math.ceil(1000 * error.retry_after_s))
    if not error.should_retry:
        advice["x-should-retry"] = "false"
    return advice


def error_from_code(code: str, message: str) -> MooringError:
    """Rebuilds an error that crossed a process boundary as (code, message)."""
    return _BY_CODE.get(code, InternalError)(message, code=code)
