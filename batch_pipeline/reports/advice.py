"""What a user can do about rows that did not succeed, by class of error.

What belongs here: the words. What does not: counting (build.py), showing.
"""

from __future__ import annotations

from batch_pipeline.ledger.batches import INPUT_ERROR
from batch_pipeline.providers.base import ErrorKind

_ADVICE = {
    INPUT_ERROR: "Correct these rows in the input and run the corrected file: rows that are done "
    "are not paid again.",
    ErrorKind.CONTENT.value: "Look at one with `batch-pipeline show {batch}:{number}`. If the text "
    "of the row is at fault, correct it in the input; if many rows are, change the prompt. Then "
    "`batch-pipeline retry {batch}`.",
    ErrorKind.TRANSIENT.value: "The provider did not answer although it was asked several times. "
    "Try again later with `batch-pipeline retry {batch}`.",
    ErrorKind.RATE_LIMITED.value: "Lower `rate_limit` or `workers`, then `batch-pipeline retry "
    "{batch}`.",
    ErrorKind.REFUSED.value: "Read one with `batch-pipeline show {batch}:{number}` and decide: "
    "rephrase the row in the input, or ask again with `batch-pipeline retry {batch} "
    "--include-blocked`.",
    ErrorKind.ITEM_PERMANENT.value: "The provider does not take these rows as they are. Shorten or "
    "correct them in the input and run the corrected file.",
}
_OTHERWISE = "Try again with `batch-pipeline retry {batch}`: finished rows cost nothing."


def next_step(kind: str, batch_id: str, number: int) -> str:
    """What to do about a row that ended with an error of class `kind`.

    Args:
        kind: the row's `error_kind`.
        batch_id: its batch.
        number: its number in the input, for commands that name it.
    """
    return _ADVICE.get(kind, _OTHERWISE).format(batch=batch_id, number=number)
