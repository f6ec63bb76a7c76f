"""`/docs`: Swagger UI from the installed wheel; the page loads nothing from elsewhere.

What belongs here: the page and its files. What does not: what it shows (/openapi.json).
"""

from __future__ import annotations

from html import escape
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

# The package holds Swagger UI's own files; its code is not used.
_ASSETS = files("fastapi_offline") / "static"
_KINDS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""


def build_docs_router(title: str) -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)
    page = _PAGE.format(title=escape(title))

    @router.get("/docs")
    def get_docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    @router.get("/docs/start.js")
    def get_start() -> Response:
        return Response(_START, media_type="text/javascript")

    for name, kind in _KINDS.items():
        _add_asset(router, name, kind)
    return router


def _add_asset(router: APIRouter, name: str, kind: str) -> None:
    @router.get(f"/docs/{name}", name=name)
    def get_asset() -> Response:
        content = (_ASSETS / name).read_bytes()
        return Response(content, media_type=kind, headers={"cache-control": "max-age=3600"})
