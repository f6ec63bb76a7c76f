"""The application: endpoints, errors, guard and the page of the documents, put together.

What belongs here: that, and the OpenAPI document's head. What does not: any endpoint (routes.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio.to_thread import run_sync
from fastapi import FastAPI

from batch_pipeline.api.docs_page import build_docs_router
from batch_pipeline.api.guard import Guard
from batch_pipeline.api.office import Office
from batch_pipeline.api.problems import install_handlers
from batch_pipeline.api.routes import build_index_router, build_public_router, build_router

_ABOUT = """Tables through LLM APIs: submit rows or pages, ask where they stand, read the results.

Every error is a `Problem`. Submissions answer 202 at once and are on disk by then; the same content
under the same name is the same batch, so a request that was cut off may simply be sent again.
"""

_TAGS = [
    {"name": "batch", "description": "Batches: submit, status, results, cancel, report."},
    {"name": "runs", "description": "Runs of any workload."},
    {"name": "reviews", "description": "Rows that wait for a person, and decisions about them."},
    {"name": "server", "description": "The server itself."},
]


def build_app(office: Office) -> FastAPI:
    """The application of an open office; the office is closed when the application ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_sync(office.close)

    app = FastAPI(
        title="batch_pipeline",
        version=version("batch-pipeline"),
        description=_ABOUT,
        openapi_tags=_TAGS,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    router = build_router(office)
    public = build_public_router(office)
    app.include_router(router)
    app.include_router(public)
    paths = sorted({route.path for route in (*router.routes, *public.routes)})  # type: ignore[attr-defined]
    app.include_router(build_index_router(office, [p.replace(":path}", "}") for p in paths]))
    app.include_router(build_docs_router(app.title))
    install_handlers(app)
    app.add_middleware(Guard, config=office.config)
    return app
