"""One shape for every error, OpenAI's: {"error": {message, type, param, code}}."""

import errno
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from pruning.errors import InvalidInput
from service.errors import DatabaseUnavailable, GraftworkError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RETRY_AFTER = 2  # seconds; nobody can tell when a database is back
_CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody receives it, the log shows it


def install(app: FastAPI) -> None:
    """Render whatever the routes of `app` raise."""
    app.add_exception_handler(GraftworkError, _graftwork_error)
    app.add_exception_handler(InvalidInput, _invalid_input)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)


def body(message: str, type: str, param: str | None = None, code: str | None = None) -> Any:
    """An error object as OpenAI's clients read it."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def internal_error() -> JSONResponse:
    """The answer to what nobody foresaw: its story is in the log, under the request's id."""
    return JSONResponse(
        body("internal error; see the server's log", "server_error", code="internal_error"), 500
    )


def response(error: GraftworkError) -> JSONResponse:
    """The answer that an error of ours is."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    content = body(str(error), error.type, error.param, error.code)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(content, error.status, headers)


def foreseen(error: BaseException | None) -> GraftworkError | None:
    """What a failure below us is to callers, where it is no mistake of ours."""
    if isinstance(error, GraftworkError):
        return error
    if isinstance(error, OSError) and error.errno in _FULL:
        return StorageFull()
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        reason = str(getattr(error, "orig", None) or error)
        if "no such" in reason:
            return None
        full = "is full" in reason or "No space left" in reason
        return StorageFull() if full else DatabaseUnavailable(retry_after=_RETRY_AFTER)
    return None


async def _graftwork_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GraftworkError)
    return response(error)


async def _invalid_input(_request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidInput)
    return JSONResponse(
        body(str(error), "invalid_request_error", error.field, error.code), error.status
    )


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [(_field(problem["loc"]), problem["msg"]) for problem in error.errors()]
    message = "; ".join(f"{field}: {text}" if field else text for field, text in problems)
    return JSONResponse(
        body(message, "invalid_request_error", problems[0][0], "invalid_value"), 400
    )


def _field(location: tuple[str | int, ...]) -> str | None:
    """The dotted name of a value, without the place ("body", "query", …) that it came in."""
    return ".".join(str(part) for part in location[1:]) or None


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if (cause := foreseen(error.__cause__)) is not None:  # raised while FastAPI read the body
        return response(cause)
    message = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
    }.get(error.status_code, str(error.detail))
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    code = HTTPStatus(error.status_code).name.lower()
    return JSONResponse(body(message, kind, code=code), error.status_code, error.headers)


async def _client_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
