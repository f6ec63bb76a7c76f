"""Errors as callers get them: one model, one exception, and what each of ours becomes.

What belongs here: the model Problem and the handlers. What does not: when something is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from batch_pipeline.errors import BatchPipelineError, UsageError

_LOG = logging.getLogger("batch_pipeline.api")
_SHOWN_ERRORS = 50


class FieldProblem(BaseModel):
    """One thing wrong in a request."""

    where: str = Field(description="Field, for example `contents[2].contents`.")
    row: int | None = Field(
        default=None, description="Row (from 1) where it is one of several rows."
    )
    message: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """What every error of this API looks like."""

    status: int = Field(description="The HTTP status again.")
    code: str = Field(description="What went wrong, for programs, for example `not_ready`.")
    detail: str = Field(description="What went wrong, for people.")
    next_step: str = Field(default="", description="What to do about it.")
    errors: list[FieldProblem] = Field(
        default_factory=list, description="Single fields and rows, where they are known."
    )


class ApiError(Exception):
    """A request that cannot be answered as wanted; becomes a Problem.

    Args:
        status: HTTP status.
        code: for programs.
        detail: what was wrong.
        next_step: what the caller can do.
        headers: to be sent with it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        next_step: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(status=status, code=code, detail=detail, next_step=next_step)
        self.headers = dict(headers or {})


# Status -> code, what it is about, an example of detail and next step.
_KNOWN: dict[int, tuple[str, str, str, str]] = {
    400: (
        "not_ready",
        "Not ready yet, or the request cannot be read",
        "Batch nov-news has not ended: 45 of 100 rows are done.",
        "Ask GET /batch/status/nov-news until `done` is true, or add ?partial=true.",
    ),
    401: (
        "unauthorized",
        "No token, or not the right one",
        "This server asks for a token.",
        "Send the header `Authorization: Bearer <token>`.",
    ),
    403: (
        "forbidden",
        "A path outside the allowed folders, a foreign Host or Origin",
        "The path is not inside a folder that this server may read from.",
        "Upload the file with POST /batch/submit-file.",
    ),
    404: (
        "not_found",
        "There is no such job, run or path",
        "There is no job 'nov-news'.",
        "GET /batch/jobs lists them.",
    ),
    405: ("method_not_allowed", "The path exists with another method", "Method Not Allowed", ""),
    409: (
        "conflict",
        "The batch exists with other content, or cannot be changed now",
        "Batch 'nov-news' exists with other content.",
        "Choose another batch_name.",
    ),
    413: (
        "too_large",
        "The request is larger than this server takes",
        "The request is larger than 33,554,432 bytes.",
        "Send larger tables with POST /batch/submit-file.",
    ),
    422: (
        "invalid",
        "A field, row, table or option that cannot be used",
        "contents[2] (row 3).title: Input should be a valid string.",
        "Correct the request; GET /docs describes it.",
    ),
    429: (
        "busy",
        "Too many submissions wait; `Retry-After` says when to try again",
        "1,000 submissions are waiting for their turn.",
        "Try again after 30 s.",
    ),
    500: ("internal", "A fault of the server", "The server failed.", "Its log says why."),
    503: (
        "unavailable",
        "The ledger cannot be used, or the server is going down",
        "The ledger cannot be used now.",
        "Try again; the server's log says why.",
    ),
}

_EVERYWHERE = (401, 403, 500, 503)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint: these errors, and those that every endpoint may give."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *_EVERYWHERE}):
        code, title, detail, next_step = _KNOWN[status]
        example = Problem(status=status, code=code, detail=detail, next_step=next_step)
        found[status] = {
            "model": Problem,
            "description": title,
            "content": {"application/json": {"example": example.model_dump()}},
        }
        if status == 429:
            found[status]["headers"] = {
                "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
            }
    return found


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that carries a Problem."""
    return JSONResponse(problem.model_dump(), problem.status, dict(headers or {}))


def known_problem(status: int, detail: str = "", next_step: str | None = None) -> Problem:
    """A Problem of a status with its usual code."""
    code, _, usual, usual_next = _KNOWN.get(status, ("error", "", "The request failed.", ""))
    return Problem(
        status=status,
        code=code,
        detail=detail or usual,
        next_step=usual_next if next_step is None else next_step,
    )


def not_found(detail: str, next_step: str = "GET /batch/jobs lists them.") -> ApiError:
    """There is no such thing."""
    return ApiError(404, "not_found", detail, next_step)


def unusable(error: UsageError) -> ApiError:
    """A table, an option or a name that cannot be used."""
    return ApiError(422, "invalid", error.message, error.next_step)


def install_handlers(app: FastAPI) -> None:
    """Let every error leave as a Problem."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(BatchPipelineError, _on_ours)
    app.add_exception_handler(Exception, _on_fault)


async def _on_api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return problem_response(error.problem, error.headers)


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    every = error.errors()
    found = [_field(entry) for entry in every[:_SHOWN_ERRORS]]
    detail = "; ".join(f"{_place(one)}: {one.message}" for one in found[:3]) + "."
    if len(every) > 3:
        detail += f" And {len(every) - 3} more."
    problem = known_problem(422, detail)
    problem.errors = found
    return problem_response(problem)


def _field(entry: Mapping[str, Any]) -> FieldProblem:
    """One of pydantic's errors, without the value: it may be long, or private."""
    parts: Sequence[str | int] = entry["loc"]
    row: int | None = None
    where = ""
    for part in parts[1:] if len(parts) > 1 else parts:
        if isinstance(part, int):
            row = part + 1 if row is None and where else row
            where += f"[{part}]"
        else:
            where += f".{part}" if where else str(part)
    return FieldProblem(where=_clean(where), row=row, message=_clean(str(entry["msg"])))


def _place(problem: FieldProblem) -> str:
    return problem.where if problem.row is None else f"{problem.where} (row {problem.row})"


def _clean(text: str) -> str:
    # A field's name comes from the caller, and may be what no UTF-8 can write.
    return text.encode("utf-8", "replace").decode()[:300]


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        problem = Problem(
            status=400,
            code="unreadable",
            detail="The request's body cannot be read.",
            next_step="Send JSON in UTF-8, or a multipart form where a file is uploaded.",
        )
        return problem_response(problem, error.headers)
    if error.status_code == 404:
        problem = known_problem(404, "There is no such path.", "GET /docs lists the endpoints.")
        return problem_response(problem, error.headers)
    detail = error.detail if isinstance(error.detail, str) else ""
    return problem_response(known_problem(error.status_code, detail), error.headers)


async def _on_ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BatchPipelineError)
    if isinstance(error, UsageError):
        return problem_response(unusable(error).problem)
    # Its text may name hosts and folders of the server.
    _LOG.error("%s", error)
    return problem_response(known_problem(503))


async def _on_fault(_: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again once this is sent, and the server logs it.
    return problem_response(known_problem(500))
