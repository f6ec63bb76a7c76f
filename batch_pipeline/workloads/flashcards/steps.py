"""The steps of a topic in each mode: which follow which, and what the local ones do.

What belongs here: the step list and its glue. What does not: checking cards (rounds.py, checks.py),
counting votes (voting.py), whether a topic is completed (completion.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from batch_pipeline.engine.step import (
    CITATIONS,
    AnyStep,
    Branches,
    Done,
    LocalStep,
    Row,
    Step,
    in_thread,
    with_tools,
)
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.providers.base import ProviderError, WebSearch
from batch_pipeline.search.base import SearchQuery
from batch_pipeline.workloads.flashcards.completion import (
    Part,
    completion_faults,
    sources_problem,
)
from batch_pipeline.workloads.flashcards.models import (
    CardsAnswer,
    OptimizedPrompt,
    TopicPlan,
    Vote,
    finished,
)
from batch_pipeline.workloads.flashcards.options import FlashcardOptions
from batch_pipeline.workloads.flashcards.record import (
    RECORD,
    RefusedCard,
    Source,
    TopicRecord,
    iso,
)
from batch_pipeline.workloads.flashcards.rounds import (
    CheckRecord,
    again_content,
    card_at,
    check_cards,
)
from batch_pipeline.workloads.flashcards.rules import CheckRules, VoterRules, VotingRules
from batch_pipeline.workloads.flashcards.topics import topic_content, topic_of
from batch_pipeline.workloads.flashcards.voting import (
    Tally,
    VoteOutcome,
    synthesis_content,
    tally,
)
from batch_pipeline.workloads.operator_files import Prompts

RESEARCH = "research"
SOURCES = "sources"
VOTES = "votes"
TALLY = "tally"
SYNTHESIS = "synthesis"
CARDS = "cards"
CHECK = "check"
AGAIN = "again"

TEMPERATURE = 0.1
EXA = "exa"

INCOMPLETE = "incomplete"
CONSENSUS = "consensus"
NO_RESEARCH = "research"
"""`error_kind` of topics that did not complete."""

# A card takes about 350 tokens in English; three times and more leave room for code and for scripts
# that take more tokens a word. 50 cards make 61,500, below the 65,536 that the models shipped as
# defaults can write.
_CARD_TOKENS = 1_200
_CARDS_BASE = 1_500
_USUAL_CARD_TOKENS = 350
_USUAL_SHARE_AGAIN = 0.4  # of topics have a card to mend; of these, again after a round
_PROMPT_TOKENS = 2_100  # prompt.md, the schema of a card, the topic with its context
_CHARS_PER_TOKEN = 4

# Decisions of people; everything else is a vote that did not take place as it should.
_JUDGED: frozenset[VoteOutcome] = frozenset({"no_consensus", "unsure"})
_SHOWN_OBJECTIONS = 2


class FlashcardSteps:
    """Makes the steps of a run.

    Args:
        prompts: prompt.md, which holds for every card, and the others.
        rules: the checks of cards.
        voting: voters and bounds.
        options: the run's.
        timeout_s: seconds until a call counts as timed out.
    """

    def __init__(
        self,
        prompts: Prompts,
        rules: CheckRules,
        voting: VotingRules,
        options: FlashcardOptions,
        timeout_s: float,
    ) -> None:
        self._prompts = prompts
        self._rules = rules
        self._voting = voting
        self._options = options
        self._timeout_s = timeout_s
        self._wanted = options.num_flashcards
        self._checks = [CHECK, *(f"{CHECK}_{n}" for n in range(1, options.rounds + 1))]

    def make(self) -> Sequence[AnyStep]:
        """The steps, in order."""
        first = {"web": self._web, "exa": self._exa, "unified": self._unified}[self._options.mode]
        return (*first(), *self._checking(), LocalStep(RECORD, in_thread(self._record)))

    # ---- the modes ----

    def _web(self) -> Iterator[AnyStep]:
        search = self._options.web_search
        yield self._cards("" if search is None else "web", _topic, _searched(search), search)

    def _exa(self) -> Iterator[AnyStep]:
        if self._options.research:
            # More than Exa answers in a second, so that its limit is what bounds a run.
            yield LocalStep(RESEARCH, with_tools(self._research), at_once=64, searches={EXA: 1})
        yield self._cards("", self._material, _searched(self._options.web_search))

    def _unified(self) -> Iterator[AnyStep]:
        search = self._options.web_search
        yield self._step(
            RESEARCH,
            self._prompts.task("plan" if search is None else RESEARCH),
            TopicPlan,
            lambda row: {**_topic(row), "wanted": self._wanted},
            output=(4_000, 100 * self._wanted),
            typical=(700 + _searched(search), 1_100),
            search=search,
        )
        if search is not None:
            # Before eight voters and all that follows are paid for nothing.
            yield LocalStep(SOURCES, in_thread(self._any_source))
        yield Branches(VOTES, tuple(self._voter(voter) for voter in self._voting.voters))
        yield LocalStep(TALLY, in_thread(self._tally))
        yield self._step(
            SYNTHESIS,
            self._prompts.task(SYNTHESIS),
            OptimizedPrompt,
            self._synthesis_content,
            output=(8_000, 0),
            typical=(2_800, 1_000),
        )
        yield self._cards("unified", self._brief, 1_500)

    def _checking(self) -> Iterator[AnyStep]:
        """Check the cards; ask those again that fail, and for those that are missing."""
        yield LocalStep(CHECK, in_thread(self._checker(CARDS)))
        for number in range(1, self._options.rounds + 1):
            again, check = f"{AGAIN}_{number}", self._checks[number]
            yield self._again(number)
            yield LocalStep(
                check,
                in_thread(self._checker(again, self._checks[number - 1])),
                applies=partial(self._takes_check, again),
            )

    def _takes_check(self, again: str, row: Row) -> bool:
        """Whether a topic comes to the check behind `again`: it may, before its first check."""
        return again in row or not any(row.get(name) is not None for name in self._checks)

    # ---- LLM steps ----

    def _cards(
        self,
        task: str,
        content: Callable[[Row], dict[str, Any]],
        material_tokens: int,
        search: WebSearch | None = None,
    ) -> Step:
        return self._step(
            CARDS,
            self._prompts.with_shared(task) if task else self._prompts.shared,
            CardsAnswer,
            lambda row: {**content(row), "wanted": self._wanted},
            output=(_CARDS_BASE, _CARD_TOKENS * self._wanted),
            typical=(_PROMPT_TOKENS + material_tokens, _USUAL_CARD_TOKENS * self._wanted),
            search=search,
        )

    def _voter(self, voter: VoterRules) -> Step:
        return self._step(
            f"vote_{voter.name}",
            self._prompts.task("vote"),
            Vote,
            lambda row: {
                **self._material(row),
                "objectives": row[RESEARCH]["objectives"],
                "points": row[RESEARCH]["points"],
                "voter": voter.name,
                "focus": voter.focus,
            },
            output=(2_000, 0),
            typical=(1_900, 180),
            optional=True,
        )

    def _again(self, number: int) -> Step:
        checks = self._checks[:number]

        def lacking(row: Row) -> bool:
            # Before its first check a topic may come to lack something.
            known = [row[name] for name in checks if row.get(name) is not None]
            return not known or CheckRecord.model_validate(known[-1]).lacking

        def content(row: Row) -> dict[str, Any]:
            record = CheckRecord.model_validate(row[checks[-1]])
            return {**self._material(row), **again_content(row, record)}

        return self._step(
            f"{AGAIN}_{number}",
            self._prompts.with_shared(AGAIN),
            CardsAnswer,
            content,
            # all of them may fail
            output=(_CARDS_BASE, _CARD_TOKENS * self._wanted),
            typical=(_PROMPT_TOKENS + 2 * _USUAL_CARD_TOKENS, 2 * _USUAL_CARD_TOKENS),
            applies=lacking,
            expected_share=_USUAL_SHARE_AGAIN**number,
            # What passed may be enough.
            optional=True,
        )

    def _step(
        self,
        name: str,
        prompt: str,
        model: type[BaseModel],
        content: Callable[[Row], dict[str, Any]],
        *,
        output: tuple[int, int],
        typical: tuple[int, int],
        search: WebSearch | None = None,
        applies: Callable[[Row], bool] = lambda row: True,
        expected_share: float = 1.0,
        optional: bool = False,
    ) -> Step:
        base, per_topic = output
        return Step(
            name=name,
            system_prompt=prompt,
            output_model=model,
            content=content,
            items_name="topics",
            output_tokens_base=base,
            output_tokens_per_item=per_topic,
            timeout_s=self._timeout_s,
            temperature=TEMPERATURE,
            applies=applies,
            expected_share=expected_share,
            optional=optional,
            typical_tokens=typical,
            # The same topic in two folders is one question.
            shared_by=_topic,
            web_search=search,
        )

    # ---- content ----

    def _material(self, row: Row) -> dict[str, Any]:
        """The topic, with what research found where that is given."""
        if self._options.mode == "web" or (
            self._options.mode == "exa" and not self._options.research
        ):
            return _topic(row)
        return {**_topic(row), "findings": row[RESEARCH]["findings"]}

    def _synthesis_content(self, row: Row) -> dict[str, Any]:
        votes = self._votes(row)
        return {
            **self._material(row),
            "objectives": row[RESEARCH]["objectives"],
            "points": row[RESEARCH]["points"],
            **synthesis_content(votes, tally(votes, self._voting)),
        }

    def _brief(self, row: Row) -> dict[str, Any]:
        prompt = OptimizedPrompt.model_validate(row[SYNTHESIS])
        return {
            **self._material(row),
            "brief": prompt.system_prompt,
            "objectives": [one.model_dump(mode="json") for one in prompt.objectives],
        }

    def _votes(self, row: Row) -> dict[str, Vote | None]:
        given = row[TALLY]["votes"]
        return {
            name: None if vote is None else Vote.model_validate(vote)
            for name, vote in given.items()
        }

    # ---- research by Exa ----

    async def _research(self, row: Row, place: Place, tools: Tools) -> Done:
        depth = self._options.depth
        query = SearchQuery(
            _query_of(row), country="", limit=depth.pages, text_chars=depth.characters
        )
        try:
            answer = await tools.search(EXA, query, place)
        except ProviderError as error:
            return _ended(NO_RESEARCH, f"Exa gave no answer: {error.message}.", place)
        findings = [
            {
                "title": str(page.get("title") or ""),
                "url": page["url"],
                "text": str(page.get("text") or page.get("snippet") or ""),
            }
            for page in answer.results
            if page.get("url")
        ]
        if not findings:
            problem = f"Exa found nothing for '{query.text}'. That is kept for an hour; after it"
            return _ended(NO_RESEARCH, problem, place)
        return Done({"findings": findings})

    # ---- the other local steps ----

    def _checker(self, step: str, before: str = "") -> Callable[[Row, Place, Tools], Done]:
        def work(row: Row, place: Place, tools: Tools) -> Done:
            record = check_cards(
                row,
                step,
                topic_of(row),
                self._rules,
                self._wanted,
                CheckRecord.model_validate(row[before]) if before else None,
            )
            return Done(record.model_dump(mode="json"))

        return work

    def _any_source(self, row: Row, place: Place, tools: Tools) -> Done:
        """End a topic that the research found too little for."""
        if problem := sources_problem(self._sources(row), self._rules):
            return _ended(NO_RESEARCH, problem, place)
        return Done()

    def _tally(self, row: Row, place: Place, tools: Tools) -> Done:
        """Count the vote; without a consensus the topic ends here."""
        given = {voter.name: row[f"vote_{voter.name}"] for voter in self._voting.voters}
        votes = {
            name: None if vote is None else Vote.model_validate(vote)
            for name, vote in given.items()
        }
        counted = tally(votes, self._voting)
        document = {"votes": given, **counted.as_json()}
        if counted.agreed:
            return Done(document)
        if counted.outcome == "too_few_voters":
            # The votes that there are stay: only the missing ones are asked for.
            return Done(
                document,
                Outcome.FAILED,
                CONSENSUS,
                f"{counted.message} `batch-pipeline retry {place.batch_id}` asks the others again.",
            )
        if counted.outcome not in _JUDGED:
            return _ended(CONSENSUS, counted.message, place, document, (RESEARCH,))
        return Done(
            document,
            Outcome.BLOCKED,
            CONSENSUS,
            f"{counted.message}{_objections(votes, counted)} Give the topic a context that answers "
            f"them, or let all vote anew: `batch-pipeline retry {place.batch_id} "
            "--include-blocked`.",
            ask_anew=True,
        )

    def _record(self, row: Row, place: Place, tools: Tools) -> Done:
        """Put together what came of the topic; what is in it decides whether it is completed."""
        record = self._record_of(row, place, tools)
        document = record.model_dump(mode="json")
        if faults := completion_faults(record, self._rules, self._voting):
            problem, kept = " ".join(faults.values()), self._kept(faults)
            return _ended(INCOMPLETE, problem, place, document, kept)
        return Done(document)

    def _kept(self, faults: Mapping[Part, str]) -> tuple[str, ...]:
        """LLM steps that did their part for a topic with `faults`: nobody pays for them again."""
        if self._options.mode != "unified" or not faults.keys() <= {"plan", "cards"}:
            return ()
        voters = tuple(f"vote_{voter.name}" for voter in self._voting.voters)
        return (RESEARCH, *voters) if "plan" in faults else (RESEARCH, *voters, SYNTHESIS)

    def _record_of(self, row: Row, place: Place, tools: Tools) -> TopicRecord:
        last = next(row[name] for name in reversed(self._checks) if row.get(name) is not None)
        checked = CheckRecord.model_validate(last)
        scores = [one.score for one in checked.passed]
        unified = self._options.mode == "unified"
        return TopicRecord(
            topic=topic_of(row),
            mode=self._options.mode,
            model=place.model,
            temperature=TEMPERATURE,
            made_at=iso(tools.clock.now()),
            simulated=tools.simulator is not None,
            wanted=self._wanted,
            cards=[finished(card_at(row, one)) for one in checked.passed],
            mean_score=round(sum(scores) / len(scores), 4) if scores else None,
            refused=[
                RefusedCard(
                    card=card_at(row, one),
                    score=one.score,
                    problems=one.problems,
                    checks=one.checks,
                )
                for one in (*checked.failing, *checked.spare)
            ],
            researched=self._options.research,
            sources=self._sources(row),
            votes=self._votes(row) if unified else None,
            tally={name: value for name, value in row[TALLY].items() if name != "votes"}
            if unified
            else None,
            decision=row[TALLY]["decision"] if unified else None,
            approval=row[TALLY]["approval"] if unified else None,
            prompt=OptimizedPrompt.model_validate(row[SYNTHESIS]) if unified else None,
        )

    def _sources(self, row: Row) -> list[Source]:
        """The pages that a search gave: not those that a model names."""
        if not self._options.research:
            return []
        match self._options.mode:
            case "web":
                pages = row[CARDS].get(CITATIONS, [])
            case "exa":
                pages = row[RESEARCH]["findings"]
            case "unified":
                pages = row[RESEARCH].get(CITATIONS, [])
        return [Source(title=page["title"], url=page["url"]) for page in pages if page["url"]]


def _topic(row: Row) -> dict[str, Any]:
    return topic_content(topic_of(row))


def _query_of(row: Row) -> str:
    """What Exa is asked: the topic, and where it belongs, so that no namesake is found."""
    topic = topic_of(row)
    place = ", ".join(dict.fromkeys(one for one in (topic.domain, topic.category) if one))
    return f"{topic.title} ({place})" if place else topic.title


def _searched(search: WebSearch | None) -> int:
    """Prompt tokens of what a search gives."""
    return 0 if search is None else search.max_results * search.max_characters // _CHARS_PER_TOKEN


def _ended(
    kind: str,
    problem: str,
    place: Place,
    document: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
) -> Done:
    return Done(
        dict(document or {}),
        Outcome.FAILED,
        kind,
        f"{problem} `batch-pipeline retry {place.batch_id}` asks for it anew.",
        ask_anew=True,
        keep=keep,
    )


def _objections(votes: Mapping[str, Vote | None], counted: Tally) -> str:
    """The reasons of those who object, the first few."""
    objections = synthesis_content(votes, counted)["objections"]
    shown = [f"{one['voter']}: {one['reasoning']}" for one in objections[:_SHOWN_OBJECTIONS]]
    more = len(objections) - len(shown)
    said = f" {' '.join(shown)}" if shown else ""
    return f"{said} ({more} more object.)" if more > 0 else said
