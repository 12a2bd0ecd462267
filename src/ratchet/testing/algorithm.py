"""What every algorithm promises."""

from collections.abc import Sequence

from ratchet.core.algorithm import Search
from ratchet.core.contract import watched
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Candidate
from ratchet.testing.problem import Order, Recorded, Shuffled, SyntheticProblem
from ratchet.testing.promises import expect


class AlgorithmConformance:
    """What every algorithm promises. Inherit it in a class that pytest collects, and name the algorithm.

        class TestMine(AlgorithmConformance):
            search = staticmethod(my_search)

    Each method is one promise: the same seed gives the same search, whatever was searched between, and so does the same
    order of completion; no run beyond the budget; only candidates of this program, each with known parents; only the
    examples in the problem; an end, with finalists or with ``BudgetSpent``, wherever the budget ends; no fall over
    failed runs, a hopeless or a tiny problem, several predictors, or a reflection LM that writes nonsense; and a clear
    gain on a toy problem with most seeds. All of them run without an LM, in seconds. What breaks the contract is told
    with the turn, what was found and what was expected. ``ratchet algorithms check`` runs the same promises.

    Attributes:
        search: The algorithm.
        seeds: Seeds of the toy problem.
        least_gain: What "clearly better" is: how much of the score on unseen examples is to be gained.
        may_miss: With how many of the seeds it may stay below that.
        stops: The requests at which the budget is ended.
    """

    search: Search
    seeds: Sequence[int] = range(5)
    least_gain: float = 0.2
    may_miss: int = 1
    stops: Sequence[int] = (1, 2, 3, 4, 6, 9, 14, 22, 40, 70)

    @property
    def name(self) -> str:
        """What the algorithm is called in messages."""
        return getattr(self.search, "__name__", "the algorithm")

    def solved(self, toy: SyntheticProblem, *, seed: int = 0, order: Order | None = None) -> Sequence[Candidate]:
        """The finalists, when nothing on the way to them was against the contract."""
        finalists = toy.solve(watched(self.search, self.name), seed=seed, order=order)
        expect(not toy.broken, f"the search broke the contract: {'; '.join(toy.broken)}")
        expect(toy.runs_used <= toy.runs, f"{toy.runs_used} runs were used of {toy.runs}")
        keys = [each.key for each in finalists]
        expect(len(set(keys)) == len(keys), f"a finalist came back twice: {keys}")
        return finalists

    def test_the_same_seed_gives_the_same_search(self) -> None:
        for predictors in PREDICTORS:
            toys = [SyntheticProblem(predictors=predictors, runs=250, fails=0.1, classes=3) for _ in range(2)]
            first = [(each.key, each.parents, each.origin) for each in self.solved(toys[0], seed=7)]
            self.solved(SyntheticProblem(seed=1, predictors=predictors, runs=60), seed=8)  # nothing of it may stay
            second = [(each.key, each.parents, each.origin) for each in self.solved(toys[1], seed=7)]
            expect(first == second, f"the same seed gave {first}, then {second}")
            expect(toys[0].evaluated == toys[1].evaluated, "the same seed evaluated other candidates the second time")

    def test_a_resumed_search_that_sees_the_same_order_of_completion_is_the_same(self) -> None:
        toys = [SyntheticProblem(predictors=PREDICTORS[1], runs=200, slots=4) for _ in range(2)]
        order = Shuffled(3)
        first = [each.key for each in self.solved(toys[0], order=order)]
        second = [each.key for each in self.solved(toys[1], order=Recorded(order.taken))]
        expect(first == second, f"the same order gave {first}, then {second}")
        expect(toys[0].evaluated == toys[1].evaluated, "the same order evaluated other candidates the second time")

    def test_no_run_beyond_the_budget_and_only_candidates_with_known_parents(self) -> None:
        for runs in (1, 7, 31, 100, 300):
            for predictors in PREDICTORS:
                self.solved(SyntheticProblem(runs=runs, predictors=predictors, classes=2))

    def test_finalists_or_budget_spent_wherever_the_budget_ends(self) -> None:
        for stop_at in self.stops:
            toy = SyntheticProblem(stop_at=stop_at, runs=250, predictors=PREDICTORS[1])
            try:
                self.solved(toy)
            except BudgetSpent:
                continue

    def test_failed_runs_are_coped_with(self) -> None:
        for share in (0.3, 1.0):
            for predictors in PREDICTORS:
                self.solved(SyntheticProblem(fails=share, predictors=predictors))

    def test_a_hopeless_problem_comes_to_an_end(self) -> None:
        for predictors in PREDICTORS:
            toy = SyntheticProblem(hopeless=True, predictors=predictors)
            best = self.solved(toy)[0]
            gain = toy.quality(best) - toy.quality(toy.problem.seed)
            expect(gain == 0.0, f"there was nothing to gain, and {gain} was gained")

    def test_tiny_problems_are_coped_with(self) -> None:
        for runs in (2, 5, 20, 100):
            for predictors in PREDICTORS:
                self.solved(SyntheticProblem(n_train=2, n_validation=2, runs=runs, predictors=predictors))

    def test_a_reflection_lm_that_writes_nonsense_is_coped_with(self) -> None:
        for text in NONSENSE:
            for predictors in PREDICTORS[:2]:
                self.solved(SyntheticProblem(texts=(text,), runs=150, predictors=predictors))
        self.solved(SyntheticProblem(texts=NONSENSE, classes=2))

    def test_the_toy_problem_is_solved_with_most_seeds(self) -> None:
        for predictors in PREDICTORS[:2]:
            gains = []
            for seed in self.seeds:
                toy = SyntheticProblem(seed=seed, predictors=predictors)
                best = self.solved(toy, seed=seed)[0]
                gains.append(toy.quality(best) - toy.quality(toy.problem.seed))
            missed = sum(gain < self.least_gain for gain in gains)
            said = ", ".join(f"{gain:.2f}" for gain in gains)
            expect(missed <= self.may_miss, f"with predictors {predictors} the gains are {said}")


PREDICTORS = (("answer",), ("plan", "answer"), ("search", "plan", "answer"))
"""The programs an algorithm is tried on."""
NONSENSE = (
    "",
    " \n\t",
    "```",
    "```\n```",
    "Answer the question.",
    "{}",
    "\x00\ud800 \u202e",
    "x" * 50_000,
    "```json\n[1, 2\n```",
)
"""What a reflection LM may write that is no instruction."""
