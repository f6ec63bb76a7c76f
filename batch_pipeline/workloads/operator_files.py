"""What an operator edits: rules, prompts, options; and what is wrong with it, in words.

What belongs here: reading it into its model, with errors that name file, key and next step. What
does not: any rule, prompt or option.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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


def read_prompt(path: Path) -> str:
    """A prompt file's text, stripped.

    Raises:
        UsageError: it is missing, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(
            f"The prompt file {path} cannot be read: {reason}.",
            "Put the file back, or correct its encoding.",
        ) from error
    if not text:
        raise UsageError(f"The prompt file {path} is empty.", "Write the step's task into it.")
    return text


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a workload with several LLM steps.

    Attributes:
        shared: what all of them are told.
        folder: where each step's own task is, as `<name>.md`.
    """

    shared: str
    folder: Path

    def task(self, name: str) -> str:
        """A step's own task alone; raises as `read_prompt` does."""
        return read_prompt(self.folder / f"{name}.md")

    def with_shared(self, name: str) -> str:
        """What all steps are told, then a step's own task: prompt caches keep beginnings."""
        return f"{self.shared}\n\n{self.task(name)}"


def read_options(model: type[_Model], given: Mapping[str, Any], whose: str) -> _Model:
    """A workload's own options.

    Args:
        model: what there is.
        given: what was set.
        whose: the workload, as in `the options of the articles`.

    Raises:
        UsageError: one is unknown, or has a value that it cannot have.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {_of_option(one['type'], one['msg'], one['input'])}"
            for one in error.errors(include_url=False, include_context=False)
        )
        raise UsageError(
            f"The options of the {whose} cannot be used: {said}.",
            f"There are: {', '.join(model.model_fields)}.",
        ) from error


def _of_option(kind: str, message: str, given: Any) -> str:
    if kind == "extra_forbidden":
        return "there is no such option"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}, but it is {given!r}"


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
