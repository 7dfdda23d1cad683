"""The tree of errors that callers of the API see, rendered in OpenAI's shape by one handler."""

from typing import ClassVar

from pydantic import BaseModel


class GraftworkError(Exception):
    """An error with an HTTP status; the docstring of a subclass is its default message."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message or type(self).__doc__)
        self.param = param
        self.retry_after = retry_after


class ErrorDetail(BaseModel):
    """What went wrong; `param` names the field that it is about."""

    message: str
    type: str
    param: str | None
    code: str | int | None  # an engine's own errors have numbers


class ErrorBody(BaseModel):
    error: ErrorDetail


class NotFound(GraftworkError):
    """There is no such object."""

    status, code, type = 404, "not_found", "invalid_request_error"


class ModelNotFound(NotFound):
    """The model does not exist."""

    code = "model_not_found"


class Unauthorized(GraftworkError):
    """No valid API key; send one as `Authorization: Bearer gw-…`."""

    status, code, type = 401, "invalid_api_key", "authentication_error"


class Forbidden(GraftworkError):
    """The API key lacks the scope for this."""

    status, code, type = 403, "insufficient_permissions", "permission_error"


class TooManyRequests(GraftworkError):
    """The tenant asks more than it may; try again later."""

    status, code, type = 429, "rate_limit_exceeded", "rate_limit_error"


class QuotaExceeded(GraftworkError):
    """The tenant stores as much as it may."""

    status, code, type = 403, "insufficient_quota", "insufficient_quota"


class Conflict(GraftworkError):
    """The object exists already, or is in use."""

    status, code, type = 409, "conflict", "invalid_request_error"


class EngineUnavailable(GraftworkError):
    """The engine that serves this base is starting or restarting; try again shortly."""

    status, code = 503, "engine_unavailable"


class Overloaded(GraftworkError):
    """More requests wait for this engine than it can take; try again later."""

    status, code = 503, "overloaded"


class DeadlineExceeded(GraftworkError):
    """The request was not answered in the time that it had; try again later, or allow more."""

    status, code = 503, "deadline_exceeded"


class DatabaseUnavailable(GraftworkError):
    """The database does not answer; try again shortly."""

    status, code = 503, "database_unavailable"


class StorageFull(GraftworkError):
    """The server's disk is full; nothing of this request was kept."""

    status, code = 507, "storage_full"


class RequestTimeout(GraftworkError):
    """The body came too slowly."""

    status, code, type = 408, "request_timeout", "invalid_request_error"


class AdapterRejected(GraftworkError):
    """The engine refused the adapter."""

    status, code, type = 400, "adapter_rejected", "invalid_request_error"


class ContentDamaged(GraftworkError):
    """The stored content is not what was registered; it was put aside."""

    status, code = 500, "content_damaged"


class BaseDamaged(EngineUnavailable):
    """The artifact of this base is not what was made; it was put aside."""

    status, code = 500, "content_damaged"


class PayloadTooLarge(GraftworkError):
    """The request body is too large."""

    status, code, type = 413, "payload_too_large", "invalid_request_error"
