"""What every archive promises."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from ratchet.core.errors import UnknownName
from ratchet.core.evaluation import Evaluation, Failure, Step, Usage
from ratchet.core.problem import (
    Candidate,
    Example,
    PredictorState,
)
from ratchet.engine.archive import Archive, Event, Notebook, Optimization
from ratchet.programs.journal import Journal, Reply
from ratchet.testing.promises import expect, raises, same


class ArchiveConformance(ABC):
    """What every archive promises, its notebooks and journals included. Inherit it and say how one is opened.

        class TestMine(ArchiveConformance):
            @pytest.fixture(autouse=True)
            def storage(self, tmp_path):
                self.url = f"sqlite:///{tmp_path}/ratchet.db"

            def opened(self):
                return SqlArchive(self.url)

    The promises: whatever is kept comes back as it was, every text of Python and every missing number included; what
    is kept twice stays as it was the first time; totals count each request that was sent; another connection sees what
    was written before a flush; eight threads that write at the same time lose nothing.
    """

    threads: int = 8
    written: Sequence[Notebook] = ()

    @abstractmethod
    def opened(self) -> Archive:
        """The storage under test. Called again, it opens the same storage once more."""

    def begun(self, name: str = "0a1b2c", **more: Any) -> Notebook:
        """A notebook of a new optimization."""
        notebook = self.opened().start(_optimization(name, **more))
        self.written = [*self.written, notebook]
        return notebook

    def again(self) -> Archive:
        """The same storage, opened once more after all that was written is safe."""
        for notebook in self.written:
            notebook.flush()
        return self.opened()

    # optimizations

    def test_an_optimization_comes_back_as_it_was(self) -> None:
        full = _optimization(
            "aa",
            status="failed",
            request={"options": {"target": TEXTS[0], "price": None, "seeds": [1, 2.5]}},
            result={"quality": None, "notes": list(TEXTS)},
            error=TEXTS[2],
            seconds=1.5,
        )
        self.again().start(full)
        found = self.again().find("aa")
        same(found, full)
        expect(found.created_at.tzinfo is not None, "created_at lost its time zone")

    def test_an_optimization_is_found_by_a_unique_beginning_of_its_id(self) -> None:
        archive = self.again()
        for name in ("abc1", "abc2", "abc11", "b%_7"):
            archive.start(_optimization(name))
        for beginning, name in (("abc1", "abc1"), ("abc2", "abc2"), ("b", "b%_7"), ("b%", "b%_7")):
            same(archive.find(beginning).id, name)
            archive.open(beginning).note(Event(kind=f"by {beginning}"))
        same([event.kind for _, event in archive.open("b%_7").events()], ["by b", "by b%"])
        for unknown in ("", "abc", "x", "%", "_bc1", "abc12", "ABC2"):
            for ask in (archive.find, archive.open):
                expect(raises(UnknownName, ask, unknown), f"{unknown!r} was found, though it names none or several")

    def test_the_newest_optimization_is_listed_first(self) -> None:
        archive = self.again()
        same(archive.list(), [])
        for number in (2, 0, 3, 1):
            # As old as its number says, wherever the clock stood.
            zone = timezone(timedelta(hours=9 - 6 * number))
            archive.start(_optimization(f"n{number}", created_at=(LONG_AGO + timedelta(hours=number)).astimezone(zone)))
        same([each.id for each in archive.list()], ["n3", "n2", "n1", "n0"])
        same([each.id for each in archive.list(limit=2)], ["n3", "n2"])

    def test_status_result_and_seconds_are_kept(self) -> None:
        notebook, elsewhere = self.begun("aa"), self.begun("bb")
        notebook.set_status("failed", error=TEXTS[2])
        same((self.again().find("aa").status, self.again().find("aa").error), ("failed", TEXTS[2]))
        notebook.set_status("improved", result={"p": 0.01, "none": None, "text": TEXTS[1]})
        notebook.add_seconds(1.25)
        notebook.add_seconds(0.5)
        found = self.again().find("aa")
        same((found.status, found.error, found.seconds), ("improved", "", 1.75))
        same(found.result, {"p": 0.01, "none": None, "text": TEXTS[1]})
        elsewhere.add_seconds(0.0)
        same(self.again().find("bb").status, "running")

    # examples, candidates, evaluations, events

    def test_examples_come_back_in_their_splits_and_order(self) -> None:
        notebook = self.begun()
        same(notebook.examples(), {})
        splits = {name: tuple(_example(f"{name} {number}") for number in range(12)) for name in ("train", "test")}
        splits["test"] += (_example("train 3"),)
        notebook.keep_examples(splits)
        same(self.again().open("0a1b2c").examples(), splits)
        kept = notebook.examples()["train"][0]
        same((kept.inputs, kept.labels), (splits["train"][0].inputs, splits["train"][0].labels))

    def test_examples_that_are_kept_again_change_nothing(self) -> None:
        notebook = self.begun()
        notebook.keep_examples({"train": [_example("a")], "validation": [_example("b")]})
        notebook.keep_examples({"train": [_example("c"), _example("d")], "test": [_example("e")]})
        same(notebook.examples(), {"train": (_example("a"),), "validation": (_example("b"),)})

    def test_candidates_come_back_in_the_order_they_were_first_seen(self) -> None:
        notebook = self.begun()
        seed = _candidate(TEXTS[0])
        children = [seed.with_instructions("answer", text, origin=f"by {text}") for text in TEXTS[1:]]
        for number, each in enumerate((seed, *children, seed)):
            notebook.keep_candidate(each, stage=f"stage {number}")
        notebook.keep_candidate(Candidate(predictors=seed.predictors, parents=("x",), origin="again"), stage="later")
        kept = self.again().open("0a1b2c").candidates()
        expected = [(each.key, f"stage {number}") for number, each in enumerate((seed, *children))]
        same([(each.key, stage) for each, stage in kept], expected)
        for (each, _), before in zip(kept, (seed, *children), strict=True):
            same((each.state(), each.parents, each.origin), (before.state(), before.parents, before.origin))

    def test_evaluations_come_back_as_they_were(self) -> None:
        notebook = self.begun()
        evaluations = list(_evaluations())
        notebook.keep_examples({"train": list(dict.fromkeys(each.example for each in evaluations))})
        for number, each in enumerate(evaluations):
            notebook.keep_evaluation(each, stage=f"stage {number % 2}")
        kept = list(self.again().open("0a1b2c").evaluations())
        same(kept, [(each, f"stage {number % 2}") for number, each in enumerate(evaluations)])
        same([each.example.inputs for each, _ in kept], [each.example.inputs for each in evaluations])

    def test_an_evaluation_that_is_kept_again_changes_nothing(self) -> None:
        notebook = self.begun()
        first, second = (Evaluation(candidate="c", example=_example("a"), score=score) for score in (0.25, 0.75))
        notebook.keep_examples({"train": [_example("a")]})
        notebook.keep_evaluation(first, stage="search")
        notebook.keep_evaluation(second, stage="test")
        same(list(notebook.evaluations()), [(first, "search")])

    def test_events_are_numbered_from_one_in_each_optimization(self) -> None:
        notebook, other = self.begun("aa"), self.begun("bb")
        for number, text in enumerate(TEXTS):
            notebook.note(Event(kind="said", payload={"text": text, "number": number, "nothing": None}))
            other.note(Event(kind="elsewhere"))
        expected = [
            (number, Event(kind="said", payload={"text": text, "number": number - 1, "nothing": None}))
            for number, text in enumerate(TEXTS, start=1)
        ]
        again = self.again().open("aa")
        same(again.events(), expected)
        same(again.events(after=2), expected[2:])
        same(again.events(after=len(TEXTS)), [])

    # the journal

    def test_a_reply_is_found_once_it_is_recorded(self) -> None:
        journal = self.begun().journal
        for number, text in enumerate(TEXTS):
            reply = _reply(f"k{number}", text=text, cost_usd=None if number else 0.5)
            expect(journal.find(reply.key) is None, "a reply was found before it was sent for")
            journal.reserve(reply.key, role=reply.role, stage=reply.stage, usd=1.0)
            expect(journal.find(reply.key) is None, "a reply was found before it came")
            journal.record(reply)
            same(journal.find(reply.key), reply)
            same(self.again().open("0a1b2c").journal.find(reply.key), reply)

    def test_totals_count_retries_and_lost_requests(self) -> None:
        journal, elsewhere = self.begun("aa").journal, self.begun("bb").journal
        same(_totals(journal), {"calls": 0, "recorded": 0, "tokens": (0, 0), "usd": (0.0, 0.0), "unpriced": 0})
        for _ in range(3):
            journal.reserve("retried", role="task", stage="search", usd=0.5)
        journal.record(_reply("retried", cost_usd=0.25))
        for _ in range(2):
            journal.reserve("lost", role="judge", stage="baseline", usd=0.125)
        journal.reserve("unpriced", role="reflection", stage="search", usd=0.0)
        journal.record(_reply("unpriced", cost_usd=None))
        journal.reserve("free", role="task", stage="test", usd=0.0)
        journal.record(_reply("free", cost_usd=0.0, stage="test"))
        elsewhere.reserve("retried", role="task", stage="search", usd=9.0)
        expected = {"calls": 7, "recorded": 3, "tokens": (30, 6), "usd": (0.25, 0.25), "unpriced": 1}
        for each in (journal, self.again().open("aa").journal):
            same(_totals(each), expected)
            same(dict(each.sent().by_stage), {"search": 4, "baseline": 2, "test": 1})
        expect(journal.find("lost") is None, "a lost reply was found")
        expect(elsewhere.find("retried") is None, "a reply of another optimization was found")

    def test_the_stage_that_asked_first_is_told_of_each_recorded_reply(self) -> None:
        journal, elsewhere = self.begun("aa").journal, self.begun("bb").journal
        for name, stage in (("k1", "baseline"), ("k2", "search"), ("lost", "search"), ("k1", "test")):
            journal.reserve(name, role="task", stage=stage, usd=0.0)
        for name, stage in (("k1", "baseline"), ("k2", "search")):
            journal.record(_reply(name, cost_usd=None, stage=stage))
        for each in (journal, self.again().open("aa").journal):
            same(each.stages(), {"k1": "baseline", "k2": "search"})
        same(elsewhere.stages(), {})

    # more than one at a time

    def test_an_optimization_can_be_held_let_go_and_held_again(self) -> None:
        notebook, other = self.begun("aa"), self.begun("bb")
        for _ in range(2):
            with notebook.claimed(), other.claimed():
                notebook.note(Event(kind="held"))
        try:
            with notebook.claimed():
                raise UnknownName("something went wrong while it was held")
        except UnknownName:
            pass
        with self.again().open("aa").claimed():
            same(len(notebook.events()), 2)

    def test_what_one_connection_wrote_another_sees_after_a_flush(self) -> None:
        notebook = self.begun()
        seen = self.again().open("0a1b2c")
        seeing: list[object] = []
        for number in range(5):
            notebook.note(Event(kind=f"{number}"))
            notebook.flush()
            thread = threading.Thread(target=lambda: seeing.append(len(seen.events())))
            thread.start()
            thread.join()
        same(seeing, [1, 2, 3, 4, 5])

    def test_writers_in_many_threads_lose_nothing(self) -> None:
        notebook, each_writes = self.begun(), 12
        examples = [_example(f"{number}") for number in range(each_writes)]
        notebook.keep_examples({"train": examples})

        def write(thread: int) -> None:
            mine = notebook if thread % 2 else self.again().open("0a1b2c")
            for number in range(each_writes):
                candidate = _candidate(f"{thread} {number}")
                mine.note(Event(kind="wrote", payload={"thread": thread, "number": number}))
                mine.keep_candidate(candidate, stage="search")
                mine.keep_candidate(_candidate(f"shared {number}"), stage=f"{thread}")
                mine.keep_evaluation(
                    Evaluation(candidate=candidate.key, example=examples[number], score=0.5), stage="search"
                )
                mine.journal.reserve(f"{thread} {number}", role="task", stage="search", usd=0.5)
                mine.journal.reserve(f"shared {number}", role="task", stage="search", usd=0.5)
                mine.journal.record(_reply(f"{thread} {number}", cost_usd=0.25))
                mine.add_seconds(0.5)
            mine.flush()

        _all_at_once(write, self.threads)
        n = self.threads * each_writes
        again = self.again().open("0a1b2c")
        events = [event.payload for _, event in again.events()]
        for thread in range(self.threads):
            same([each["number"] for each in events if each["thread"] == thread], list(range(each_writes)))
        same([number for number, _ in again.events()], list(range(1, n + 1)))
        same(len(again.candidates()), n + each_writes)
        same(len(list(again.evaluations())), n)
        same(self.again().find("0a1b2c").seconds, n / 2)
        expected = {"calls": 2 * n, "recorded": n, "tokens": (10 * n, 2 * n), "usd": (n / 4, n / 2), "unpriced": 0}
        same(_totals(again.journal), expected)


TEXTS = (
    "plain",
    "Grüße, 漢字, 🙂, \x1b[0m, \t\r\n, 'quoted' \"twice\" \\ and %s _",
    'a lone \udc80 surrogate and a \x00 in "the middle"',
    '"begins and ends with a quote"',
    "",
)
"""Texts that come back as they were, whatever an LM or a user made of them."""
LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def _all_at_once(work: Callable[[int], None], n: int) -> None:
    """Run ``work`` in ``n`` threads that begin together.

    Raises:
        Exception: the first that one of them raised.
    """
    barrier = threading.Barrier(n)

    def run(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(run, range(n)))


def _optimization(name: str, **more: Any) -> Optimization:
    return Optimization(**{"id": name, "status": "running", "created_at": LONG_AGO, "request": {}, **more})


def _example(name: str) -> Example:
    return Example(inputs={"text": name, "numbers": [1, 2.5, None], "said": list(TEXTS)}, labels={"flag": True})


def _candidate(text: str) -> Candidate:
    demos = ({"text": text, "answer": {"deep": [text, None]}},)
    return Candidate(predictors={"answer": PredictorState(instructions=text, demos=demos)})


def _evaluations() -> Iterator[Evaluation]:
    """Every kind of evaluation there is."""
    example = _example("a")
    yield Evaluation(candidate="c", example=example, score=0.0)
    yield Evaluation(candidate="c", example=example, repeat=1, score=1.0, usage=Usage(calls=2, cost_usd=None))
    yield Evaluation(
        candidate="c",
        example=_example("b"),
        failure=Failure(kind="unparseable", message=TEXTS[2]),
        feedback=TEXTS[1],
        trace=(Step(predictor="answer", inputs={"text": TEXTS[2]}, outputs={}, raw=TEXTS[2]),),
        replies=("k1", "k2"),
    )
    for number, text in enumerate(TEXTS):
        yield Evaluation(
            candidate=f"d{number}",
            example=example,
            score=1 / 3,
            feedback=text,
            prediction={"answer": text, "parts": [None, {"deep": text}]},
            trace=(Step(predictor="plan", inputs={"text": text}, outputs={"answer": None}),) * 2,
            usage=Usage(calls=1, prompt_tokens=10, completion_tokens=2, cost_usd=0.1 + 0.2, latency_ms=1e-3),
        )


def _reply(key: str, *, cost_usd: float | None, text: str = "hello", stage: str = "search") -> Reply:
    return Reply(
        key=key,
        role="task",
        stage=stage,
        response={"text": text, "parts": [{"deep": None}]},
        prompt_tokens=10,
        completion_tokens=2,
        cost_usd=cost_usd,
        latency_ms=1.5,
    )


def _totals(journal: Journal) -> dict[str, object]:
    sent = journal.sent()
    return {
        "calls": sent.calls,
        "recorded": sent.recorded,
        "tokens": (sent.prompt_tokens, sent.completion_tokens),
        "usd": (sent.usd, sent.usd_lost),
        "unpriced": sent.unpriced,
    }
