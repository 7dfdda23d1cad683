"""The console: pages for a browser, served by the gateway itself; nothing of them comes from afar.

They are plain modules and one style sheet.  What they show they ask of the API, with the key that
whoever looks has typed in, so the files themselves need none.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse

from service.errors import NotFound
from service.tenants import NOBODY

_ASSETS = Path(__file__).parent / "assets"
_FILES = {
    path.relative_to(_ASSETS).as_posix(): path for path in _ASSETS.rglob("*") if path.is_file()
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
OPEN = dict.fromkeys(("/", "/docs", *(f"/console/{name}" for name in _FILES)), NOBODY)

router = APIRouter(include_in_schema=False)


@router.get("/")
def console() -> FileResponse:
    """The page that loads all others."""
    return asset("index.html")


@router.get("/docs")
def reference() -> RedirectResponse:
    """Where those look who know FastAPI: our page about the API."""
    return RedirectResponse("/#/api")


@router.get("/console/{name:path}")
def asset(name: str) -> FileResponse:
    """A script, the style sheet or the mark."""
    if name not in _FILES:
        raise NotFound(f"the console has no file {name!r}")
    return FileResponse(_FILES[name], headers=_HEADERS)
