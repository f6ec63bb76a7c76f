"""Files of rules that an operator edits, and what is wrong with a document, in words.

What belongs here: reading one into its model, with errors that name file, key and next step. What
does not: any rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from batch_pipeline.errors import UsageError

_Model = TypeVar("_Model", bound=BaseModel)


def read_rules(path: Path, model: type[_Model], page: str) -> _Model:
    """The rules of a YAML file.

    Args:
        path: the file.
        model: what it must hold.
        page: of docs/, which has all its keys.

    Raises:
        UsageError: the file is missing, or has something in it that it cannot have.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}.", "Put the file back, or correct its encoding."
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {error}.", "Correct the line it names.") from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise UsageError(
            f"{path}: {problems_of(error, whole='the file')}.",
            f"Correct the keys it names; docs/{page} has all.",
        ) from error


def problems_of(error: ValidationError, *, whole: str = "", most: int | None = None) -> str:
    """What is wrong with a document: `key.inner: why; other: why`.

    Args:
        error: what validation said.
        whole: stands for the key where the document as a whole is wrong.
        most: problems named at most.
    """
    return "; ".join(
        f"{'.'.join(map(str, one['loc'])) or whole}: {one['msg']}"
        for one in error.errors(include_url=False, include_context=False)[:most]
    )
