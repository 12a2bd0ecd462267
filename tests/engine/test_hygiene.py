"""What is copied, what is too long, and what can be left out: text in, text out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.evaluation import Evaluation, Evaluations, Usage
from ratchet.core.problem import Candidate, Example, PredictorState
from ratchet.engine.hygiene import (
    Guard,
    added_parts,
    estimated_tokens,
    measured_tokens,
    pieces,
    shortened_to,
    without,
)

LONG = "The parcel that I ordered on Monday came without its blue lid and nobody answers"
SHORT = "My invoice is wrong again"


def program(text: str = "Sort the mail.", demos: int = 0) -> Candidate:
    shown = tuple({"text": f"mail {number} " * (number + 1), "queue": "billing"} for number in range(demos))
    return Candidate(predictors={"sort": PredictorState(instructions=text, demos=shown)})


def example(text: str, queue: str = "billing") -> Example:
    return Example(inputs={"text": text}, labels={"queue": queue})


GUARD = Guard([example(LONG), example(SHORT), *(example(f"mail number {n}") for n in range(20))], program())


@given(st.text(alphabet="ab.!? \n1文。！”", max_size=60))
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        f"A mail such as '{LONG}' goes to returns.",
        f"Mind: {LONG.upper()}!",
        "So when the parcel that I ordered on Monday came late, say returns.",
        f"For example '{SHORT}' is billing.",
    ],
)
def test_what_was_copied_from_an_example_is_seen(text: str) -> None:
    assert not GUARD.is_clean(program(text))


@pytest.mark.parametrize(
    "text",
    [
        "Say billing when the parcel was paid twice.",
        "The parcel that I ordered.",
        "Mail number 3 is billing.",
        "An invoice that is wrong is billing.",
    ],
)
def test_words_that_everyone_uses_are_not_copied(text: str) -> None:
    assert GUARD.is_clean(program(text))


def test_what_many_examples_share_is_the_form_of_the_data() -> None:
    form = "Read the passage below and then answer the question that follows it"
    guard = Guard([example(f"{form}: {number}") for number in range(20)], program())
    assert guard.is_clean(program(f"{form}."))


def test_what_the_program_said_before_is_its_own() -> None:
    guard = Guard([example(LONG)], program(f"Sort. {LONG}."))
    assert guard.is_clean(program(f"Sort well. {LONG}."))


CHINESE = "我上周一订购的包裹没有带蓝色的盖子而且没有人接听电话"
THAI = "พัสดุที่ฉันสั่งเมื่อวันจันทร์มาถึงโดยไม่มีฝาสีน้ำเงิน"


@pytest.mark.parametrize("text", [CHINESE, THAI])
def test_a_script_without_spaces_is_looked_at_by_its_characters(text: str) -> None:
    guard = Guard([example(text), example("包裹退货")], program("分类邮件。"))
    assert not guard.is_clean(program(f"分类邮件。例如“{text[3:25]}”属于退货。"))
    assert guard.is_clean(program(f"分类邮件。{text[:8]}属于包裹退货。"))


def test_copied_sentences_in_chinese_are_removed_and_the_rest_stays() -> None:
    guard = Guard([example(CHINESE)], program("分类邮件。"))
    mended = guard.cleaned(program(f"请分类邮件！例如“{CHINESE}。”要简短。"))
    assert mended is not None
    assert mended.predictors["sort"].instructions == "请分类邮件！要简短。"


def test_a_long_number_is_copied_and_a_short_one_is_not() -> None:
    rows = [Example(inputs={"phone": 4915112345678, "n": 3, "paid": True}, labels={"total": 1234567.89})]
    for guard in (Guard(rows, program()), Guard(rows, program(), ngram=5, least_words=1)):
        assert not guard.is_clean(program("Callers from +4915112345678 are billing."))
        assert not guard.is_clean(program("Sums of 1234567.89 are billing."))
        assert guard.is_clean(program("Answer in 3 words, of 4 lines, when it is true."))


def test_demos_may_show_examples() -> None:
    shown = program().with_demos("sort", [{"text": LONG, "queue": "returns"}], origin="demo")
    assert GUARD.is_clean(shown)


def test_copied_sentences_are_removed_and_the_rest_stays() -> None:
    mended = GUARD.cleaned(program(f"Name the queue.\nSo '{LONG}' is returns.\nBe brief."))
    assert mended is not None
    assert mended.predictors["sort"].instructions == "Name the queue.\nBe brief."
    assert mended.origin == "hygiene: 1 sentences copied from examples removed"


def test_a_copy_that_runs_over_several_sentences_is_removed_too() -> None:
    guard = Guard([example("It is late. It was paid on Monday. Please send the money back.")], program())
    mended = guard.cleaned(program("Be kind. It is late! It was paid on Monday. Please send the money back. Be brief."))
    assert mended is not None
    assert mended.predictors["sort"].instructions == "Be kind. Be brief."


def test_a_lesson_keeps_no_value_of_an_example_that_is_not_a_label_of_many() -> None:
    names = [example(f"Anna{number} Berg", "billing") for number in range(9)]
    strict = Guard(names, program(), ngram=5, least_words=1)
    mended = strict.unquoting(program("Name the queue. Anna3 Berg pays by billing. Else it is billing."))
    assert mended is not None
    assert mended.predictors["sort"].instructions == "Name the queue. Else it is billing."
    assert strict.unquoting(program("Else it is billing.")) == program("Else it is billing.")


def test_instructions_that_are_nothing_but_a_copy_cannot_be_mended() -> None:
    assert GUARD.cleaned(program(LONG)) is None


def rows(tokens: list[int]) -> Evaluations:
    return Evaluations(
        tuple(
            Evaluation(candidate="c", example=example(f"{n}"), score=1.0, usage=Usage(calls=2, prompt_tokens=each))
            for n, each in enumerate(tokens)
        )
    )


def test_tokens_are_measured_where_the_lm_tells_them_and_else_estimated() -> None:
    assert measured_tokens(rows([200, 240])) == 120
    assert measured_tokens(rows([200, 0])) is None
    assert estimated_tokens(program("x" * 41)) == 11


@given(st.integers(0, 6), st.floats(0.0, 1.2))
def test_demos_are_dropped_until_the_prompt_is_short_enough(demos: int, share: float) -> None:
    candidate = program(demos=demos)
    before = estimated_tokens(candidate)
    shorter = shortened_to(candidate, share)
    if shorter is not None:
        assert estimated_tokens(shorter) <= before * share + 1
        assert shorter.predictors["sort"].instructions == candidate.predictors["sort"].instructions
        assert len(shorter.predictors["sort"].demos) < demos
        assert shorter.parents == (candidate.key,)


def test_only_what_the_search_added_can_be_left_out() -> None:
    seed = program("Sort the mail.")
    found = seed.with_instructions("sort", "Sort the mail. Be brief. Be kind.", origin="x")
    found = found.with_demos("sort", [{"text": "a", "queue": "b"}], origin="x")
    parts = added_parts(seed, found)
    assert [(part.text, part.demo) for part in parts] == [
        ("Be brief.", False),
        ("Be kind.", False),
        ('{"queue":"b","text":"a"}', True),
    ]
    less = without(found, [parts[0], parts[2]])
    assert less is not None
    assert less.predictors["sort"] == PredictorState(instructions="Sort the mail. Be kind.")
    assert less.origin == "minimised: 1 sentences and 1 demos less"
    assert without(program("Be brief."), added_parts(seed, program("Be brief."))) is None
