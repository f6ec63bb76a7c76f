"""The twelve checks: each below, at and above its bound; score, messages, faults."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.errors import UsageError
from batch_pipeline.workloads.flashcards.checks import CHECKS, check_card
from batch_pipeline.workloads.flashcards.models import DraftCard
from batch_pipeline.workloads.flashcards.rules import CheckRules, load_check_rules
from batch_pipeline_tests.workloads.flashcards.cards import (
    DEFS,
    GOOD,
    RULES,
    TOPIC,
    draft,
    with_options,
)

ANSWER = str(GOOD["correct_answer"])
WRONG: list[dict[str, str]] = GOOD["distractors"]
TEXTS = [one["text"] for one in WRONG]


def failed(card: DraftCard, rules: CheckRules = RULES, **topic: str) -> set[str]:
    return set(check_card(card, TOPIC.model_copy(update=topic), rules).failed)


def wrong(number: int, **changes: str) -> list[dict[str, str]]:
    return [{**one, **changes} if place == number else one for place, one in enumerate(WRONG)]


def explained(**changes: str) -> dict[str, Any]:
    return {**GOOD["detailed_explanation"], **changes}


def test_a_good_card_passes_all_twelve() -> None:
    report = check_card(draft(), TOPIC, RULES)
    assert (report.score, report.passed, report.findings) == (1.0, True, ())
    assert len(CHECKS) == 12 and list(CHECKS) == list(RULES.weights)


def test_the_shipped_weights_are_those_of_the_reference() -> None:
    assert RULES.pass_score == 0.80
    assert list(RULES.weights.values()) == [1, 0.5, 1, 1, 0.5, 0.5, 0.8, 1, 1, 1, 0.8, 0.5]


@pytest.mark.parametrize(
    ("text", "category", "found"),
    [
        ("According to NIST, a salt is random and stored.", "001_cybersecurity", True),
        ("Salts follow, according  to\nOWASP's advice, each hash.", "001_cybersecurity", True),
        ("According to ISO/IEC 27001 a salt is stored.", "001_cybersecurity", True),
        ("According to NISTLAND, a salt is random and stored.", "001_cybersecurity", False),
        ("NIST publishes what a salt is according to practice.", "001_cybersecurity", False),
        ("According to NIST, a salt is random and stored.", "003_software-engineering", False),
        ("As an AI I know that a salt is random and stored.", "003_software-engineering", True),
    ],
)
def test_a_phrase_is_prohibited_in_its_category_as_whole_words(
    text: str, category: str, found: bool
) -> None:
    card = draft(detailed_explanation=explained(core_logic=text + " It makes hashes differ."))
    assert ("prohibited_phrases" in failed(card, category_folder=category)) is found


@pytest.mark.parametrize("place", ["question_text", "correct_answer", "distractors", "analogy"])
def test_a_prohibited_phrase_is_found_wherever_it_stands(place: str) -> None:
    said = "A salt, according to CIS, is a random value"
    changes: dict[str, dict[str, Any]] = {
        "question_text": {"question_text": said},
        "correct_answer": {"correct_answer": said},
        "distractors": {"distractors": wrong(1, text=said)},
        "analogy": {"detailed_explanation": explained(analogy=said)},
    }
    assert "prohibited_phrases" in failed(draft(**changes[place]))


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("What is a salt?", True),  # 4 words
        ("What is a password salt?", False),  # 5, the bound
        ("What does a password salt do?", False),
        ("What is the salt mentioned above good for?", True),
        ("Which of the following describes a salt?", False),
        ("How does a PBKD salt protect a password?", True),
        ("How does a key derivation function (KDF) use a salt?", False),
        ("How does an HTTP server store a salt?", False),
        ("Is a password salt NULL, TRUE or FALSE?", False),
        ("What does control AC-2 say of password salts?", False),
    ],
)
def test_a_question_stands_alone(question: str, found: bool) -> None:
    assert ("self_contained" in failed(draft(question_text=question))) is found


def test_an_abbreviation_of_the_topics_own_name_needs_no_explanation() -> None:
    card = draft(question_text="What does MFA salt a password with?")
    assert "self_contained" in failed(card)
    assert "self_contained" not in failed(card, title="MFA for passwords")


@pytest.mark.parametrize(("bound", "found"), [(0.89, True), (0.9, False), (0.91, False)])
def test_distractors_alike_beyond_the_bound_are_no_choice(bound: float, found: bool) -> None:
    # 9 of 10 letters: 90 % alike
    card = with_options("something else", "abcdefghij", "abcdefghix", "1234567890")
    rules = RULES.model_copy(
        update={
            "distractor_diversity": RULES.distractor_diversity.model_copy(
                update={"max_similarity": bound}
            )
        }
    )
    assert ("distractor_diversity" in failed(card, rules)) is found


def test_the_order_of_words_makes_no_other_distractor_and_a_misconception_counts_once() -> None:
    same = with_options(ANSWER, "key that decrypts a secret", "a secret key that decrypts", "other")
    assert "distractor_diversity" in failed(same)
    repeated = draft(distractors=wrong(1, misconception=WRONG[0]["misconception"].upper()))
    assert "distractor_diversity" in failed(repeated)


@pytest.mark.parametrize(
    ("misconception", "found"),
    [
        ("Targets [mix-up]: one two three", True),
        ("Targets [mix-up]: one two three four", False),
        ("Targets [mix-up]: one two three four five", False),
        ("targets mix-up: one two three four", False),
        ("Targets []: one two three four", True),
        ("Targets [mix-up] one two three four", True),
        ("It is confused with encryption quite often", True),
    ],
)
def test_a_distractor_names_its_misconception_and_a_reason(misconception: str, found: bool) -> None:
    card = draft(distractors=wrong(2, misconception=misconception))
    assert ("distractor_reasoning" in failed(card)) is found


@pytest.mark.parametrize(("length", "found"), [(29, False), (30, False), (31, True)])
def test_the_longest_option_is_at_most_three_times_the_shortest(length: int, found: bool) -> None:
    card = with_options("a" * length, "b" * 10, "c" * 15, "d" * 20)
    assert ("length_consistency" in failed(card)) is found


@pytest.mark.parametrize(
    ("other", "found"), [("salted hasx", True), ("salted haxx", True), ("salted xxxh", False),
                         ("salted xxxx", False)]
)  # fmt: skip
def test_options_differ_by_three_letters(other: str, found: bool) -> None:
    card = with_options("Salted Hash", other, "plain text", "cipher text")
    assert ("edit_distance" in failed(card)) is found


@pytest.mark.parametrize(("least", "found"), [(1, False), (2, False), (3, True)])
def test_a_card_shares_words_with_its_topic(least: int, found: bool) -> None:
    rules = RULES.model_copy(
        update={"domain_coherence": RULES.domain_coherence.model_copy(
            update={"min_shared_words": least})}
    )  # fmt: skip
    plain = draft(
        question_text="What is added to passwords so that salted ones differ?",
        correct_answer="Some bytes",
        detailed_explanation=explained(core_logic="They make equal ones come out otherwise."),
    )
    topic = {"context": "", "domain": "", "subdomain": "", "title": "Password Salting Basis"}
    assert ("domain_coherence" in failed(plain, rules, **topic)) is found


def test_a_card_about_something_else_is_found() -> None:
    card = draft(
        question_text="Which planet of the solar system has the largest moon?",
        correct_answer="Jupiter with Ganymede",
        detailed_explanation=explained(core_logic="Ganymede is larger than Titan and Mercury."),
    )
    assert "domain_coherence" in failed(card)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distractors": WRONG[:2]}, "has 2 distractors, not exactly 3"),
        ({"distractors": [*WRONG, {"text": "A", "misconception": "B"}]}, "not exactly 3"),
        ({"distractors": wrong(1, misconception=" ")}, "distractor 2: misconception is empty"),
        ({"detailed_explanation": explained(analogy="")}, "analogy is empty"),
        ({"difficulty": "sublime"}, "difficulty is 'sublime', not"),
        ({"bloom_level": ""}, "bloom_level is empty"),
        ({"question_text": None}, "question_text is empty"),
        (
            {"distractors": wrong(1, text=f" {TEXTS[0].upper()}.")},
            "the distractors 1 and 2 are the same",
        ),
        ({"distractors": wrong(2, text=ANSWER)}, "distractor 3 is the correct answer"),
        (
            {"distractors": [{**one, "text": TEXTS[0]} for one in WRONG]},
            "distractors 1 and 3 are the same",
        ),
    ],
)
def test_a_missing_part_fails_the_card_and_is_named(changes: dict[str, Any], said: str) -> None:
    report = check_card(draft(**changes), TOPIC, RULES)
    assert "required_fields" in report.automatic and report.score == 0 and not report.passed
    assert said in " ".join(report.problems)


def test_options_that_differ_in_a_symbol_are_different_ones() -> None:
    for options in (("C++", "C#", "C", "C--"), ("x > 0", "x < 0", "-x > 0", "x >= 0")):
        assert "required_fields" not in failed(with_options(*options))


@pytest.mark.parametrize(
    ("length", "found"), [(1, True), (2, False), (3, False), (400, False), (401, True)]
)
def test_an_answer_has_a_length_within_its_bounds(length: int, found: bool) -> None:
    assert ("answer_quality" in failed(draft(correct_answer="x" * length))) is found


@pytest.mark.parametrize(("count", "found"), [(7, True), (8, False), (9, False)])
def test_an_explanation_has_eight_words(count: int, found: bool) -> None:
    card = draft(detailed_explanation=explained(core_logic="salt " * count))
    assert ("answer_quality" in failed(card)) is found


@pytest.mark.parametrize("answer", ["True.", "yes", TEXTS[0].upper(), str(GOOD["question_text"])])
def test_an_answer_says_something_of_its_own(answer: str) -> None:
    assert "answer_quality" in failed(draft(correct_answer=answer))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((f"{ANSWER} (correct)", *TEXTS), True),
        ((ANSWER, TEXTS[0], f"{TEXTS[1]} [Incorrect]", TEXTS[2]), True),
        ((ANSWER, TEXTS[0], f"{TEXTS[1]} (a common misconception)", TEXTS[2]), True),
        ((f"{ANSWER} (right)", *TEXTS), True),
        ((f"{ANSWER} (stored beside it)", *TEXTS), True),
        ((f"{ANSWER} (stored beside it)", f"{TEXTS[0]} (kept away)", *TEXTS[1:]), False),
        ((ANSWER, f"{TEXTS[0]} (kept away)", *TEXTS[1:]), False),
        (("Multi-factor authentication (MFA)", *TEXTS), False),
        (("MFA (multi-factor authentication)", *TEXTS), False),
        (("The value of os.urandom(16) is stored", *TEXTS), False),
        ((f"{ANSWER} (uncorrected)", *(f"{text} (so)" for text in TEXTS)), False),
        ((f"{ANSWER} (256 bits)", *TEXTS), True),
        ((f"{ANSWER} (2024)", *TEXTS), True),
        ((f"{ANSWER} (SALT value)", *TEXTS), True),
        (("PowerShell (kept beside it)", *TEXTS), True),
        ((f"{ANSWER} (TRUE)", *TEXTS), True),
        (("A flag [false]", *TEXTS), True),
        (("connection.setAutoCommit(false)", "connection.setAutoCommit(true)", *TEXTS[1:]), False),
        (("The value of flags[true] is stored", *TEXTS), False),
        (("connection.commit(wrong)", *TEXTS), True),
    ],
)
def test_no_parenthesis_gives_the_answer_away(options: tuple[str, ...], found: bool) -> None:
    report = check_card(with_options(*options), TOPIC, RULES)
    assert ("parenthetical_giveaways" in report.failed) is found
    if found:
        assert report.score == 0 and not report.passed


@pytest.mark.parametrize(
    "answer",
    [
        "Denial of service (DoS)",
        "Distributed denial of service (DDoS)",
        "Internet of Things (IoT)",
        "Two-factor authentication (2FA)",
        "Transport Layer Security (TLS 1.3)",
        "Advanced Encryption Standard (AES-256)",
        "Continuous integration and delivery (CI/CD)",
        "Authentication (AuthN)",
        "Open Authorization (OAuth 2.0)",
        "Development, security and operations (DevSecOps)",
        "Research and development (R&D)",
        "Port-based access control [802.1X]",
        "Многофакторная аутентификация (МФА)",
        "DoS (denial of service)",
        "TLS 1.3 (Transport Layer Security)",
        "AES-256 (Advanced Encryption Standard)",
    ],
)
def test_an_abbreviation_beside_its_full_term_gives_nothing_away(answer: str) -> None:
    assert "parenthetical_giveaways" not in failed(with_options(answer, *TEXTS))


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ("None of the above", True),
        ("All of the above options", True),
        ("Both A and B", True),
        ("N/A", True),
        ("n.a.", True),
        ("Unknown", True),
        ("An unknown value that is stored beside it", False),
        ("All passwords are kept as they are", False),
    ],
)
def test_an_option_is_an_answer(option: str, found: bool) -> None:
    assert ("pattern_detection" in failed(draft(distractors=wrong(2, text=option)))) is found


@pytest.mark.parametrize(
    ("kind", "level", "found"),
    [
        ("definition", "remember", False),
        ("definition", "understand", False),
        ("definition", "apply", True),
        ("comparison", "remember", True),
        ("comparison", "understand", False),
        ("analysis", "understand", True),
        ("analysis", "apply", False),
        ("scenario", "create", False),
    ],
)
def test_the_bloom_level_suits_the_question(kind: str, level: str, found: bool) -> None:
    assert ("bloom_level" in failed(draft(question_type=kind, bloom_level=level))) is found


@pytest.mark.parametrize(
    ("lost", "score", "passed"), [(0.19, 0.81, True), (0.2, 0.8, True), (0.21, 0.79, False)]
)
def test_a_card_passes_at_the_bound(lost: float, score: float, passed: bool) -> None:
    weights = dict.fromkeys(RULES.weights, 0.0) | {"bloom_level": lost, "edit_distance": 1 - lost}
    rules = RULES.model_copy(update={"weights": weights})
    report = check_card(draft(bloom_level="create"), TOPIC, rules)
    assert (report.score, report.passed) == (score, passed)


def test_one_failed_check_fails_no_card_unless_the_operator_says_so() -> None:
    said = draft(question_text="According to NIST, what does a salt add to a password hash?")
    above = draft(distractors=wrong(1, text="All of the above"))
    for card, score in ((said, 0.896), (above, 0.917)):
        report = check_card(card, TOPIC, RULES)
        assert report.passed and len(report.findings) == 1
        assert report.score == pytest.approx(score, abs=5e-4)
    automatic = [*RULES.automatic_fail, "prohibited_phrases"]
    rules = RULES.model_copy(update={"automatic_fail": automatic})
    assert not check_card(said, TOPIC, rules).passed


def test_a_check_without_weight_is_off_even_where_it_fails_cards_by_itself() -> None:
    weights = {**RULES.weights, "parenthetical_giveaways": 0.0}
    rules = RULES.model_copy(update={"weights": weights})
    assert check_card(with_options(f"{ANSWER} (correct)", *TEXTS), TOPIC, rules).passed


def test_what_is_wrong_is_said_in_words_the_heaviest_first() -> None:
    card = draft(bloom_level="create", distractors=wrong(0, misconception="none given at all"))
    report = check_card(card, TOPIC, RULES)
    assert [one.check for one in report.findings] == ["distractor_reasoning", "bloom_level"]
    assert "'Targets [kind]: reason'" in report.problems[0]
    assert "remember, understand" in report.problems[1]


# Each fault has a place of its own in the card, so that none mends what another one broke.
FAULTS: dict[str, Any] = {
    "prohibited": lambda card: card["detailed_explanation"].update(
        analogy="According to NIST a stamp makes letters differ"
    ),
    "abbreviation": lambda card: card.update(
        question_text=card["question_text"].replace("salt", "QXZ salt")
    ),
    "outside": lambda card: card.update(
        question_text="As mentioned above: " + card["question_text"]
    ),
    "no reason": lambda card: card["distractors"][0].update(misconception="Targets [hash]: no"),
    "repeated reason": lambda card: card["distractors"][2].update(
        misconception=card["distractors"][1]["misconception"]
    ),
    "pattern": lambda card: card["distractors"][2].update(text="None of the above, as it seems"),
    "giveaway": lambda card: card["distractors"][1].update(
        text=card["distractors"][1]["text"] + " (incorrect)"
    ),
    "bloom": lambda card: card.update(bloom_level="create"),
    "no analogy of words": lambda card: card["detailed_explanation"].update(distractor_analysis=""),
    "long option": lambda card: card["distractors"][0].update(text="A secret key " * 20),
    "short explanation": lambda card: card["detailed_explanation"].update(core_logic="A salt."),
    "fourth": lambda card: card["distractors"].append(
        {"text": "A lock that nobody opens twice", "misconception": "Targets [x]: a b c d"}
    ),
}


def faulty(names: list[str]) -> DraftCard:
    raw = copy.deepcopy(dict(GOOD))
    for name in names:
        FAULTS[name](raw)
    return DraftCard.model_validate(raw)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(sorted(FAULTS)), unique=True, min_size=1))
def test_adding_a_fault_never_raises_the_score(names: list[str]) -> None:
    scores = [
        check_card(faulty(names[:count]), TOPIC, RULES).score for count in range(len(names) + 1)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0 > scores[1]


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        dict,
        question_text=st.text(max_size=200),
        correct_answer=st.text(max_size=80),
        distractors=st.lists(
            st.fixed_dictionaries({"text": st.text(max_size=80),
                                   "misconception": st.text(max_size=80)}),
            max_size=5,
        ),
        difficulty=st.text(max_size=20),
    )
)  # fmt: skip
def test_any_card_gets_a_score_and_a_note(raw: dict[str, Any]) -> None:
    report = check_card(DraftCard.model_validate(raw), TOPIC, RULES)
    assert 0 <= report.score <= 1
    assert len(report.problems) == len(report.findings)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bloom_level: 0.5", "bloom: 0.5", "weights.bloom"),
        ("max_ratio: 3.0", "max_ratio: 0.5", "length_consistency.max_ratio"),
        ("  edit_distance: 0.5\n", "", "lacks edit_distance"),
        ("pass_score: 0.80", "pass_score: 80", "pass_score"),
    ],
)
def test_a_wrong_rules_file_is_refused_with_its_key(
    tmp_path: Any, old: str, new: str, said: str
) -> None:
    text = (DEFS / "checks.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "checks.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        load_check_rules(tmp_path)
