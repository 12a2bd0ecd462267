"""A report shows every number it is given, no number it is not given, and nothing but text where text came in."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.core.problem import Candidate, PredictorState
from ratchet.core.result import Front, FrontPoint, Performance, Status
from ratchet.core.statistics import Comparison, compare_paired
from ratchet.engine.drawing import CurvePoint, PairedExample
from ratchet.engine.report import Limits, LineageStep, Measure, PhaseSpend, Report, Side, render, word_diff

VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = '</style></title><script>alert("x")</script><img src=x onerror=alert(1)>&\'\x00'


class Page(HTMLParser):
    """Reads a page strictly: what is opened is closed, in order; keeps tags, attributes and words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


def _candidate(instructions: str, *demos: dict[str, Any]) -> Candidate:
    return Candidate(predictors={"answer": PredictorState(instructions=instructions, demos=demos)})


FULL = Report(
    optimization_id="opt-7f3a",
    target="trec-classifier",
    status="improved",
    created_at=datetime(2025, 11, 20, 14, 3, tzinfo=UTC),
    algorithm="gepa",
    reason="Quality rose.",
    comparison=Comparison(
        effect=0.1471, interval=(0.0723, 0.2212), confidence=0.95, p_value=0.0007, n=137, method="McNemar & Tango"
    ),
    cost_comparison=Comparison(
        effect=0.00031, interval=(0.00021, 0.00042), confidence=0.95, p_value=0.01, n=137, method="sign flips"
    ),
    baseline=Side(
        quality=Measure(mean=0.512, interval=(0.431, 0.593)),
        success_rate=Measure(mean=0.487, interval=(0.402, 0.571)),
        cost_usd=Measure(mean=0.00093, interval=(0.00088, 0.00099)),
        latency_ms=Measure(mean=612.0, interval=(580.0, 655.0)),
        failures={"unparseable": 19, "timeout": 1},
    ),
    optimized=Side(
        quality=Measure(mean=0.659, interval=(0.576, 0.734)),
        success_rate=Measure(mean=0.634),
        cost_usd=Measure(mean=0.00124),
        latency_ms=Measure(mean=3.14159),
        failures={"raised": 6},
    ),
    phases=(
        PhaseSpend(phase="baseline", calls=61, prompt_tokens=9127, completion_tokens=421, usd=0.0034, seconds=11.2),
        PhaseSpend(phase="search", calls=1312, prompt_tokens=301222, completion_tokens=24411, usd=None, seconds=402.7),
    ),
    total=PhaseSpend(phase="total", calls=1373, prompt_tokens=310349, completion_tokens=24832, usd=None, seconds=413.9),
    limits=Limits(calls=2000, tokens=500000, usd=1.5, seconds=1800),
    curve=(CurvePoint(calls=61, best=0.503), CurvePoint(calls=777, best=0.667)),
    pairs=(
        PairedExample(label="Who wrote Faust?", before=0.0, after=1.0, failure_before="unparseable"),
        PairedExample(label="How far is the moon?", before=1.0, after=1.0),
        PairedExample(label="What is NATO?", before=1.0, after=0.25),
        PairedExample(label="Where is Ulm?", before=0.25, after=0.75),
    ),
    before=_candidate("Answer the question.", {"question": "old demo"}, {"question": "kept demo"}),
    after=_candidate("Answer in one word.", {"question": "kept demo"}, {"question": "new demo"}),
    lineage=(
        LineageStep(candidate="aaaa1111", origin="seed", validation=0.503),
        LineageStep(candidate="bbbb2222", origin="gepa: rewrite of answer"),
    ),
    certificate="opt-7f3a.certificate.json",
    notes=("2 rows were dropped.",),
)
BARE = Report(optimization_id="o", target="t", status="declined", created_at=datetime(2025, 11, 20, tzinfo=UTC))


def _section(page: str, title: str) -> str:
    return Page(page[page.index(f"<h2>{title}") : page.index("</section>", page.index(f"<h2>{title}"))]).words


def test_a_page_is_well_formed_and_needs_nothing_but_itself() -> None:
    for page in (render(FULL), render(BARE)):
        read = Page(page)
        assert not {"script", "link", "img", "iframe", "object", "form"} & set(read.tags)
        assert not [name for name, _ in read.attributes if name in ("src", "href") or name.startswith("on")]
        assert "url(" not in page
        assert "http://" not in page
        assert "https://" not in page
        assert "@import" not in page


def test_it_is_light_and_dark() -> None:
    assert "prefers-color-scheme:dark" in render(BARE)


def test_every_number_given_is_on_the_page() -> None:
    words = Page(render(FULL)).words
    for number in (
        *("+0.147", "95 % interval +0.072 to +0.221", "p = 0.0007", "n = 137", "McNemar & Tango"),
        *("0.512", "0.431 to 0.593", "48.7 %", "40.2 % to 57.1 %", "$0.000930", "$0.000880 to $0.000990"),
        *("0.659", "0.576 to 0.734", "63.4 %", "$0.00124", "612 ms", "580 ms to 655 ms", "3.14 ms"),
        *("+$0.000310", "+$0.000210 to +$0.000420"),
        *("61", "9,127", "421", "$0.00340", "11.2 s", "1,312", "301,222", "24,411", "402.7 s"),
        *("1,373", "310,349", "24,832", "413.9 s", "335,181"),
        *("of 2,000", "of 500,000", "of $1.50", "of 1,800.0 s"),
        *("0.503", "0.667", "777", "19", "unparseable", "timeout", "raised", "opt-7f3a", "2025-11-20 14:03 UTC"),
        *("2improved", "1unchanged", "1worse", "aaaa1111", "gepa: rewrite of answer", "2 rows were dropped."),
        "ratchet verify opt-7f3a.certificate.json",
    ):
        assert number.replace(" ", "") in words.replace(" ", ""), number


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("improved", "Improved."),
        ("no_proven_gain", "No proven gain."),
        ("declined", "Declined."),
        ("failed", "Failed."),
        ("cancelled", "Cancelled."),
        ("running", "Running."),
    ],
)
def test_the_verdict_stands_at_the_top(status: Status, says: str) -> None:
    words = Page(render(dataclasses.replace(FULL, status=status))).words
    assert says in words[: words.index("Effect on quality")]
    assert "Quality rose." in words[: words.index("Effect on quality")]


def test_every_status_has_a_verdict() -> None:
    for status in get_args(Status):
        render(dataclasses.replace(BARE, status=status))


def test_what_was_not_measured_is_said_and_no_number_is_invented() -> None:
    page = render(BARE)
    words = Page(page).words.replace("2025-11-20 00:00 UTC", "")
    assert "Effect on quality: not measured" in words
    assert _section(page, "Measured on the sealed test").count("not measured") == 12
    assert _section(page, "Spend against budget").count("unknown") == 9
    assert not re.search(r"\d", words)


def test_unknown_dollars_are_unknown_and_not_zero() -> None:
    spend = _section(render(FULL), "Spend against budget")
    assert "USDunknown of $1.50" in spend
    assert "$0.00<" not in spend


def test_a_measure_without_an_interval_shows_its_mean_alone() -> None:
    page = render(dataclasses.replace(BARE, baseline=Side(quality=Measure(mean=0.5))))
    assert "<td>0.500</td>" in page


def test_zero_failures_are_a_count_and_unmeasured_ones_are_not() -> None:
    failures = _section(render(dataclasses.replace(BARE, baseline=Side(failures={}))), "Failed runs by kind")
    assert re.sub(r"\s+", " ", failures).endswith("all failed runs0not measured ")


def test_losses_are_shown_with_their_sign_and_nothing_rounds_to_minus_zero() -> None:
    loss = compare_paired([0.5, 1.0, 1.0, 0.75] * 5, [0.25, 0.5, 1.0, 0.75] * 5, seed=0)
    nothing = dataclasses.replace(loss, effect=-1e-9, interval=(-1e-7, 1e-7))
    assert "−0.188" in render(dataclasses.replace(FULL, comparison=loss))
    words = Page(render(dataclasses.replace(FULL, comparison=nothing))).words
    assert "−0.000" not in words
    assert "+0.000" in words


def test_every_text_that_comes_in_is_escaped() -> None:
    evil = dataclasses.replace(
        FULL,
        optimization_id=EVIL,
        target=EVIL,
        algorithm=EVIL,
        reason=EVIL + "\ud800",
        comparison=dataclasses.replace(FULL.comparison, method=EVIL) if FULL.comparison else None,
        baseline=Side(failures={EVIL: 1}),
        phases=(PhaseSpend(phase=EVIL),),
        total=PhaseSpend(phase=EVIL),
        pairs=(PairedExample(label=EVIL, before=0.0, after=0.0, failure_before=EVIL, failure_after=EVIL),),
        before=Candidate(predictors={EVIL: PredictorState(instructions=EVIL, demos=({EVIL: EVIL},))}),
        after=Candidate(predictors={EVIL: PredictorState(instructions=EVIL * 2, demos=({"a": EVIL},))}),
        lineage=(LineageStep(candidate=EVIL, origin=EVIL),),
        certificate=EVIL,
        notes=(EVIL,),
    )
    page = render(evil)
    page.encode()  # can be written to a file
    assert "\x00" not in page
    read = Page(page)
    assert not {"script", "img"} & set(read.tags)
    assert not [name for name, _ in read.attributes if name.startswith("on") or name == "src"]
    assert read.words.count('<script>alert("x")</script>') >= 10


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_a_word_diff_holds_both_texts(before: str, after: str) -> None:
    def side(page: str, hidden: str) -> str:
        return Page(re.sub(f"<{hidden}>.*?</{hidden}>", "", page, flags=re.DOTALL)).words

    before, after = (re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", words) for words in (before, after))
    page = word_diff(before, after)
    assert side(page, "ins") == before
    assert side(page, "del") == after


def test_prompts_show_words_and_demos_that_came_and_went() -> None:
    page = render(FULL)
    assert "Answer <del>the question</del><ins>in one word</ins>." in page
    assert "demos: 1 added, 1 removed, 1 kept" in page
    assert re.search(r"<del>[^<]*old demo[^<]*</del>", page)
    assert re.search(r"<ins>[^<]*new demo[^<]*</ins>", page)
    assert "kept demo" not in page


def test_a_baseline_that_stays_shows_no_change() -> None:
    assert "Nothing was changed" in render(dataclasses.replace(FULL, after=None))
    assert "Nothing was changed" in render(dataclasses.replace(FULL, after=FULL.before))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(-100, 1e6)), max_size=10),
    st.floats(-10, 10),
    st.floats(0, 10),
)
def test_any_numbers_make_a_drawing_inside_its_frame(
    pairs: list[tuple[float, float]], curve: list[tuple[int, float]], effect: float, width: float
) -> None:
    page = render(
        dataclasses.replace(
            FULL,
            pairs=tuple(PairedExample(label="x", before=before, after=after) for before, after in pairs),
            curve=tuple(CurvePoint(calls=calls, best=best) for calls, best in sorted(curve)),
            comparison=Comparison(
                effect=effect, interval=(effect - width, effect + width), confidence=0.9, p_value=0.5, n=9, method="m"
            ),
        )
    )
    Page(page)
    assert "nan" not in page.lower().replace("provenance", "")
    for place in re.findall(r' (?:cx|x|x1|x2)="([^"]*)"', page):
        assert -1 <= float(place) <= 721
    for place in re.findall(r' (?:cy|y|y1|y2)="([^"]*)"', page):
        assert -1 <= float(place) <= 251


# --- trade-offs -------------------------------------------------------------------------------------------------------


def _measured(quality: float, cost: float | None, latency: float) -> Performance:
    return Performance(
        success_rate=quality,
        avg_cost_per_task=cost,
        avg_latency_ms=latency,
        quality_score=quality,
        n=37,
        split="validation",
    )


def _front(cost: float | None = 0.0021) -> Front:
    return Front(
        objectives=("quality_score", "latency") if cost is None else ("quality_score", "cost"),
        points=(
            FrontPoint(
                candidate=_candidate("Answer in one word.").key,
                origin="genetic: <b>",
                performance=_measured(0.75, cost, 811.0),
                trade_offs=("best",),
            ),
            FrontPoint(candidate="cccc3333", origin="seed", performance=_measured(0.5, cost and 0.0007, 402.0)),
        ),
        baseline=_measured(0.25, cost and 0.0009, 433.0),
        validated=12,
    )


def test_a_front_is_drawn_and_every_point_has_its_row() -> None:
    page = render(dataclasses.replace(FULL, after=_candidate("Answer in one word."), front=_front()))
    section = _section(page, "Trade-offs")
    for word in ("0.750", "$0.00210", "811 ms", "cccc3333", "$0.000700", "best quality, sealed test", "2 of 12", "37"):
        assert word in section, word
    assert "cost per run" in section
    assert page.count('class="dot"') == render(FULL).count('class="dot"') + 2


def test_a_front_without_cost_is_drawn_against_latency() -> None:
    section = _section(render(dataclasses.replace(FULL, front=_front(cost=None))), "Trade-offs")
    assert "latency" in section
    assert section.count("unknown") == 3
    assert "$" not in section


def test_without_a_front_there_is_no_word_of_it() -> None:
    assert "Trade-offs" not in render(FULL)
