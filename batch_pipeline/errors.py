"""Errors a user reads: each says what was wrong, where, and what to do next.

What belongs here: the base type and the errors that several rooms raise. Errors of one room live
in that room.
"""

from __future__ import annotations


class BatchPipelineError(Exception):
    """Base of every error that this project raises on purpose.

    Args:
        message: what was wrong, with the row, file or setting it concerns.
        next_step: what the user can do about it; printed after the message.
    """

    exit_code = 1

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class UsageError(BatchPipelineError):
    """An option, a setting or a file that cannot be used as given (exit code 64)."""

    exit_code = 64
