"""One shape for every error, OpenAI's: {"error": {message, type, param, code}}."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from pruning.errors import InvalidInput
from service.errors import GraftworkError

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
    if isinstance(error.__cause__, GraftworkError):  # raised while FastAPI read the body
        return await _graftwork_error(request, error.__cause__)
    message = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
    }.get(error.status_code, str(error.detail))
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    code = HTTPStatus(error.status_code).name.lower()
    return JSONResponse(body(message, kind, code=code), error.status_code, error.headers)


async def _client_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
