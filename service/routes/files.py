"""Files: texts for calibration and evaluation, in the manner of OpenAI's."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel

from pruning.recipe import Name
from service.dependencies import CatalogDep, FilesDep, require
from service.records import File

router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[require("jobs")])


class FileObject(BaseModel):
    """The id is made of the content, so the same text again is the same file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: File) -> "FileObject":
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=file.created,
            filename=file.filename,
            purpose=file.purpose,
        )


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    has_more: Literal[False] = False


class Deleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post("")
def upload_file(file: UploadFile, purpose: Annotated[Name, Form()], files: FilesDep) -> FileObject:
    """Upload a UTF-8 text, with a purpose such as `calibration` or `evaluation`."""
    return FileObject.of(files.add(file.file, file.filename or "", purpose))


@router.get("")
def list_files(catalog: CatalogDep, purpose: str | None = None) -> FileList:
    """List the uploaded texts, newest first."""
    return FileList(data=[FileObject.of(file) for file in catalog.files(purpose)])


@router.get("/{id}")
def get_file(id: str, catalog: CatalogDep) -> FileObject:
    """Look one text up."""
    return FileObject.of(catalog.file(id))


@router.get("/{id}/content", responses={200: {"content": {"text/plain": {}}}})
def get_content(id: str, catalog: CatalogDep) -> FileResponse:
    """The text itself."""
    return FileResponse(catalog.file(id).path, media_type="text/plain; charset=utf-8")


@router.delete("/{id}")
def delete_file(id: str, files: FilesDep) -> Deleted:
    """Remove a text."""
    return Deleted(id=files.delete(id).id)
