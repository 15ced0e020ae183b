"""Pages for people: the list of data sets, and the page to review one. They use the API like any other client.

They are plain files without a build step, and load nothing from other hosts. Captions, file names and reasons are
untrusted text: the pages turn them into text nodes only, and even if a page failed to, the policy below allows only
these files to run.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from tuwen.errors import NotFound

router = APIRouter(include_in_schema=False)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class _Page:
    """A file of the pages, as it is served."""

    def __init__(self, name: str, content: bytes):
        self._content = content
        self._type = next(media_type for suffix, media_type in _TYPES.items() if name.endswith(suffix))
        self._headers = {
            "Content-Security-Policy": POLICY,
            "Cache-Control": "no-cache",  # cached, but revalidated: it changes with every release
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "ETag": f'"{sha256(content).hexdigest()[:32]}"',
        }

    def answer(self, request: Request) -> Response:
        """Answer with the file, or with 304 when the browser has it."""
        if request.headers.get("if-none-match") == self._headers["ETag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, 200, self._headers, self._type)


_PAGES = {
    file.name: _Page(file.name, file.read_bytes())
    for file in files("api").joinpath("web").iterdir()
    if file.name.endswith(tuple(_TYPES))
}


@router.get("/datasets")
async def datasets(request: Request) -> Response:
    return _PAGES["datasets.html"].answer(request)


@router.get("/datasets/{dataset_id}")
async def review(request: Request, dataset_id: str) -> Response:  # noqa: ARG001 (the page reads it from its address)
    return _PAGES["review.html"].answer(request)


@router.get("/web/{name}")
async def part(request: Request, name: str) -> Response:
    """Raises NotFound."""
    if name not in _PAGES or name.endswith(".html"):
        raise NotFound("There is nothing at this path.")
    return _PAGES[name].answer(request)
