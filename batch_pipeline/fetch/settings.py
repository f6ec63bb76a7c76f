"""How pages are fetched: bounds, manners, and what the operator allows.

What belongs here: these settings and the environment variables behind them. What does not: acting
on them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from batch_pipeline.errors import UsageError
from batch_pipeline.fetch.addresses import ALLOW_VARIABLE, AddressRules
from batch_pipeline.fetch.archive import ARCHIVE_VARIABLE, Archive

USER_AGENT_VARIABLE = "BATCH_PIPELINE_FETCH_USER_AGENT"
ROBOTS_VARIABLE = "BATCH_PIPELINE_FETCH_ROBOTS"

ROBOTS_NAME = "batch-pipeline"
"""What robots.txt files may call us: the first word of the default user agent."""


def default_user_agent() -> str:
    """Our name and version, so that a site's operator can tell who asks."""
    try:
        number = version("batch-pipeline")
    except PackageNotFoundError:
        number = "0"
    return f"{ROBOTS_NAME}/{number} (reads single pages for their text)"


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Bounds and manners of the fetcher; times in seconds.

    Attributes:
        rules: addresses that may be connected to.
        user_agent: sent with each request; its first word is looked up in robots.txt.
        obey_robots: whether robots.txt is asked for and obeyed.
        concurrency: requests in flight at once.
        per_host: of these, to one host.
        host_delay_s: between the starts of two requests to one host.
        max_crawl_delay_s: a robots.txt that asks for longer pauses gets this.
        connect_s: for one connection.
        read_s: longest silence of a server.
        total_s: for one page in all: its redirects, not the polite pauses.
        max_download: bytes of an answer's body as sent.
        max_page: bytes of it when unpacked.
        max_redirects: hops after the first request.
        retries: further tries after a failure that may pass.
        max_retry_after_s: a server that asks for a longer wait is not waited for.
        archive: where pages, or some of them, are asked for instead of the web; None asks the web.
    """

    rules: AddressRules = field(default_factory=AddressRules)
    user_agent: str = field(default_factory=default_user_agent)
    obey_robots: bool = True
    concurrency: int = 30
    per_host: int = 2
    host_delay_s: float = 0.25
    max_crawl_delay_s: float = 10.0
    connect_s: float = 10.0
    read_s: float = 15.0
    total_s: float = 45.0
    max_download: int = 5 * 1024 * 1024
    max_page: int = 10 * 1024 * 1024
    max_redirects: int = 5
    retries: int = 2
    max_retry_after_s: float = 60.0
    archive: Archive | None = None

    @property
    def robots_name(self) -> str:
        """The name that robots.txt files may know us by."""
        return self.user_agent.split("/")[0].split()[0]


def load_fetch_settings(
    environ: Mapping[str, str] | None = None, *, simulator: str | None = None
) -> FetchSettings:
    """The settings that the environment asks for.

    Args:
        environ: None is the process's own.
        simulator: the simulator's address in the simulated realm: it has the pages of reserved
            names. An archive that the environment names has all pages, these too.

    Raises:
        UsageError: naming the variable that cannot be read.
    """
    given = os.environ if environ is None else environ
    robots = given.get(ROBOTS_VARIABLE, "").strip().lower() or "obey"
    if robots not in ("obey", "ignore"):
        raise UsageError(
            f"{ROBOTS_VARIABLE} is '{robots}'.", "Set it to obey or ignore, or leave it out."
        )
    agent = given.get(USER_AGENT_VARIABLE, "").strip() or default_user_agent()
    if not agent.isascii() or not agent.isprintable():
        raise UsageError(
            f"{USER_AGENT_VARIABLE} has characters that HTTP headers cannot hold.",
            "Use plain ASCII, for example my-company-reader/1.0 (https://example.com/reader).",
        )
    return FetchSettings(
        rules=AddressRules.parse(given.get(ALLOW_VARIABLE, "")),
        user_agent=agent,
        obey_robots=robots == "obey",
        archive=Archive.parse(given.get(ARCHIVE_VARIABLE, ""))
        or (Archive.of_simulator(simulator) if simulator else None),
    )
