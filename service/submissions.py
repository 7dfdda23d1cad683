"""Two ways to hand an adapter in: JSON that names a directory, or a form with its files."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from pruning.errors import InvalidInput
from pruning.recipe import Name
from service.adapters import Submission
from service.dependencies import principal_of
from service.errors import Forbidden


class _Target(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="of the adapter; requests ask for BASE+NAME")
    base: Name = Field(description="a registered base")


class _Directory(_Target):
    path: Path = Field(description="absolute PEFT directory on the server's disk; it is copied")


async def _submission(request: Request) -> AsyncIterator[Submission]:
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_files=8, max_fields=8) as form:
            yield _from_form(form)
    elif principal_of(request).may("admin"):
        yield _from_json(await request.body())
    else:
        raise Forbidden("a path on the server takes the scope admin; upload the files instead")


SubmissionDep = Annotated[Submission, Depends(_submission)]


def _from_json(content: bytes) -> Submission:
    try:
        directory = _Directory.model_validate_json(content)
    except ValidationError as error:
        raise _in_body(error) from error
    if not directory.path.is_absolute():
        raise InvalidInput("path", "must be absolute: it is a path on the server")
    return Submission(directory.name, directory.base, path=directory.path)


def _from_form(form: FormData) -> Submission:
    fields = {key: value for key, value in form.multi_items() if isinstance(value, str)}
    uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    try:
        target = _Target.model_validate(fields)
    except ValidationError as error:
        raise _in_body(error) from error
    files = {upload.filename or "": upload.file for upload in uploads}
    if len(files) != len(uploads):
        raise InvalidInput("files", "two files have the same name")
    return Submission(target.name, target.base, files=files)


def _in_body(error: ValidationError) -> RequestValidationError:
    return RequestValidationError(
        [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
    )


def openapi_body() -> dict[str, Any]:
    """The two bodies, for the OpenAPI document."""
    form = _Target.model_json_schema()
    form["properties"]["files"] = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "adapter_config.json, adapter_model.safetensors and, maybe, eval.jsonl "
        "and calibration.jsonl",
    }
    content = {
        "application/json": {"schema": _Directory.model_json_schema()},
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": content}}
