"""From a request to a batch that is on disk: checked, ingested, and in the queue.

What belongs here: what a submission has to pass, in order. What does not: HTTP (the routes), the
run itself (worker.py).
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch_pipeline.api.config import ApiConfig
from batch_pipeline.api.inputs import Input, without_paths
from batch_pipeline.api.problems import ApiError, not_found, unusable
from batch_pipeline.api.records import CANCELLED, ENDED, WAITING, Records, RunRecord
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import (
    Batch,
    BatchExistsError,
    count_outcomes,
    find_batch,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.config import WorkloadConfig, load_workload_config
from batch_pipeline.workloads.inputs import no_simulator
from batch_pipeline.workloads.runner import (
    check_batch_id,
    deadline_at,
    ingest_batch,
    lane_of,
    open_input,
    resolve_route,
    resolve_step,
)

LAUNCHED_BY = "api"
"""`launch` of batches that came over HTTP: no sensor starts them."""

_RETRY_AFTER_S = 30
_STRIPES = 64
# What a route is checked against in the simulated realm: nothing is sent there.
_NO_SIMULATOR = "http://127.0.0.1"


class Submissions:
    """Takes batches, one at a time for each name.

    Args:
        settings: the installation's.
        config: the server's.
        ledger: in the server's realm.
        records: where runs are written down.
    """

    def __init__(
        self, settings: Settings, config: ApiConfig, ledger: Ledger, records: Records
    ) -> None:
        self._settings = settings
        self._config = config
        self._ledger = ledger
        self._records = records
        self._locks = [threading.Lock() for _ in range(_STRIPES)]

    @property
    def uploads(self) -> Path:
        """Where inputs are kept."""
        return self._settings.data / "uploads"

    def check_room(self) -> None:
        """Refuse what the queue has no room for, before anything is written.

        Raises:
            ApiError: 429 with Retry-After.
        """
        waiting, _ = self._records.counts()
        if waiting >= self._config.max_waiting:
            raise ApiError(
                429,
                "busy",
                f"{waiting:,} submissions are waiting for their turn.",
                f"Try again after {_RETRY_AFTER_S} s.",
                {"Retry-After": str(_RETRY_AFTER_S)},
            )

    def check(self, workload: str, knobs: Mapping[str, Any]) -> WorkloadConfig:
        """The workload with these options.

        Raises:
            ApiError: 422 for an unknown workload, an option it cannot have, or a missing key.
        """
        try:
            config = load_workload_config(workload).with_options(dict(knobs))
            resolve_step(config)
            simulator = _NO_SIMULATOR if self._config.realm == "simulated" else None
            lane_of(config, resolve_route(config, simulator), submit_only=True)
        except UsageError as error:
            raise unusable(error) from error
        return config

    def submit(
        self,
        workload: str,
        given: Input,
        *,
        name: str | None,
        shown: str,
        knobs: Mapping[str, Any],
        reading: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """Take a table as a batch. When this returns, a run of it is on disk.

        The same table under the same name is the same batch: its run is given back while it goes on
        or where nothing is left to do, else a new one takes up what is left.

        Args:
            workload: its name.
            given: the table.
            name: the batch's; None makes one of the content.
            shown: what to call the table in errors.
            knobs: options of the run.
            reading: how to read it.

        Raises:
            ApiError: 409 where the name is taken by other content, 422 for what cannot be used.
        """
        try:
            config = self.check(workload, knobs)
            knobs = _from_now(knobs, self._ledger.clock.now())
            job_id = name or f"{given.stem}-{given.digest[:8]}"
            with self._lock_of(job_id):
                return self._submit(config, given, job_id, shown, knobs, dict(reading or {}))
        except BaseException:
            given.discard()
            raise

    def run_again(self, workload: str, batch_id: str, knobs: Mapping[str, Any]) -> RunRecord:
        """Take up a batch that was ingested before, or give back its open run.

        Raises:
            ApiError: 404 where there is no such batch, 422 where it is of another workload.
        """
        self.check(workload, knobs)
        knobs = _from_now(knobs, self._ledger.clock.now())
        with self._lock_of(batch_id):
            batch, last = self._batch(batch_id), self._records.latest(batch_id)
            if batch is None and last is None:
                raise not_found(f"There is no batch {batch_id!r}.")
            found = batch.workload if batch is not None else last.workload if last else ""
            if found != workload:
                raise ApiError(
                    422,
                    "invalid",
                    f"Batch {batch_id!r} is of workload {found}, not {workload}.",
                    f"Name the workload {found}.",
                )
            if last is not None and last.is_active:
                return last
            return self._enqueue(last, batch, batch_id, workload, None, knobs, {})

    def cancel(self, job_id: str) -> bool:
        """Take a waiting run out of the queue; False where none waits."""
        with self._lock_of(job_id):
            last = self._records.latest(job_id)
            if last is None or last.state != WAITING:
                return False
            self._records.change(
                last, state=CANCELLED, message="Cancelled.", updated_at=self._ledger.clock.now()
            )
            return True

    def _submit(
        self,
        config: WorkloadConfig,
        given: Input,
        job_id: str,
        shown: str,
        knobs: Mapping[str, Any],
        reading: dict[str, Any],
    ) -> RunRecord:
        last, batch = self._records.latest(job_id), self._batch(job_id)
        if given.is_url_list:
            self._check_urls(config, given, job_id, shown, reading, last, batch)
        else:
            if batch is None and last is not None:
                raise _taken(job_id, "a list of URLs whose pages are not fetched yet", shown)
            batch = self._ingest(config, given, job_id, shown, reading)
        if last is not None and (last.is_active or self._is_complete(last, batch)):
            return last
        return self._enqueue(last, batch, job_id, config.workload, given, knobs, reading)

    def _is_complete(self, last: RunRecord, batch: Batch | None) -> bool:
        """Whether another run of a batch would find nothing to do."""
        if batch is None or last.state != ENDED:
            return False
        with self._ledger.read() as connection:
            counts = count_outcomes(connection, self._ledger.realm, batch.batch_id)
        return not counts[Outcome.PENDING] and not counts[Outcome.FAILED]

    def _check_urls(
        self,
        config: WorkloadConfig,
        given: Input,
        job_id: str,
        shown: str,
        reading: Mapping[str, Any],
        last: RunRecord | None,
        batch: Batch | None,
    ) -> None:
        """Pages are fetched by the run, so that lists are compared, not what is behind them."""
        try:
            check_batch_id(job_id)
            # Opening reads the list; only its rows would be fetched.
            open_input(config.domain, str(given.path), reading, self._ledger, no_simulator)
        except UsageError as error:
            raise unusable(without_paths(error, given.path, shown, self._settings.data)) from error
        if batch is not None and last is None:
            raise _taken(job_id, f"{batch.row_count:,} rows of {_name(batch.source)}", "this list")
        if last is not None and (last.digest != given.digest or last.workload != config.workload):
            raise _taken(job_id, f"{last.item_count:,} rows of another input", "this list")

    def _ingest(
        self,
        config: WorkloadConfig,
        given: Input,
        job_id: str,
        shown: str,
        reading: Mapping[str, Any],
    ) -> Batch:
        options = {name: value for name, value in reading.items() if value is not None}
        try:
            batch, _ = ingest_batch(
                self._ledger,
                config,
                str(given.path),
                batch_id=job_id,
                launch=LAUNCHED_BY,
                options=options,
            )
        except UsageError as error:
            plain = without_paths(error, given.path, shown, self._settings.data)
            if isinstance(error, BatchExistsError):
                raise ApiError(
                    409, "conflict", plain.message, "Choose another batch_name."
                ) from error
            raise unusable(plain) from error
        return batch

    def _enqueue(
        self,
        last: RunRecord | None,
        batch: Batch | None,
        job_id: str,
        workload: str,
        given: Input | None,
        knobs: Mapping[str, Any],
        reading: Mapping[str, Any],
    ) -> RunRecord:
        now = self._ledger.clock.now()
        record = RunRecord(
            job_id=job_id,
            number=0,
            workload=workload,
            source=None,
            fetches=False,
            digest="",
            item_count=batch.row_count if batch is not None else 0,
            knobs=dict(knobs),
            reading=dict(reading),
            created_at=now,
            updated_at=now,
        )
        if given is not None:
            record = replace(
                record,
                source=str(given.path) if given.is_ours else None,
                fetches=given.is_url_list,
                digest=given.digest,
                item_count=batch.row_count if batch is not None else given.count,
            )
        elif last is not None:
            record = replace(
                record,
                source=last.source,
                fetches=last.fetches,
                digest=last.digest,
                reading=last.reading,
                item_count=batch.row_count if batch is not None else last.item_count,
            )
        return self._records.add(record)

    def _batch(self, batch_id: str) -> Batch | None:
        with self._ledger.read() as connection:
            return find_batch(connection, self._ledger.realm, batch_id)

    def _lock_of(self, job_id: str) -> threading.Lock:
        return self._locks[zlib.crc32(job_id.encode("utf-8", "replace")) % _STRIPES]


def _from_now(knobs: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The options with a deadline such as `8h` as a time: it counts from the submission."""
    at = deadline_at(knobs.get("deadline"), now)
    if at is None:
        return dict(knobs)
    try:
        return {**knobs, "deadline": datetime.fromtimestamp(at, UTC).isoformat()}
    except (ValueError, OverflowError, OSError) as error:
        raise ApiError(
            422, "invalid", "The deadline is beyond all time.", "Name a nearer one."
        ) from error


def _taken(job_id: str, there: str, here: str) -> ApiError:
    return ApiError(
        409,
        "conflict",
        f"Batch {job_id!r} exists with other content: it was made of {there}, this is {here}.",
        "Choose another batch_name.",
    )


def _name(source: str) -> str:
    return Path(source).name
