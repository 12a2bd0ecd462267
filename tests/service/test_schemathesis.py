"""Schemathesis over the whole OpenAPI document, as everybody there is: none of its checks fails, and nothing is 5xx.

What it must not know: which references are there, which hosts and modules an operator allows, what a signature is. So a
request that fits the document may be refused with 422 - but never as one that does not fit it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import pytest
import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response, SerializationContext
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from ratchet.core.access import Role
from ratchet.desk import UPLOADS
from ratchet.service.problems import UNLIKE
from ratchet.testing.postgres import a_postgres, programs
from ratchet.testing.service import House, actor, addresses, house_in

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of the test itself

Who = Role | Literal["nobody"]
Addresses = dict[str, list[str]]
EVERYBODY: tuple[Who, ...] = (*get_args(Role), "nobody")

REFUSALS = ["2xx", "304", "401", "403", "404", "409", "412", "422"]
"""How a request that fits the document may be answered."""


@schemathesis.check
def what_fits_the_document_is_not_refused_for_its_shape(
    context: CheckContext, response: Response, case: Case[Any]
) -> bool | None:
    if response.status_code != 422 or case.meta is None or not case.meta.generation.mode.is_positive:
        return None
    problem = response.json()
    assert problem["title"] != UNLIKE, problem
    return None


@schemathesis.serializer(*(kind for kind in UPLOADS if kind != "application/json"))
def as_it_is(context: SerializationContext, value: Any) -> bytes:
    """A body of rows; what is no text is sent as JSON."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")


@contextmanager
def database(kind: str) -> Iterator[dict[str, str]]:
    """The settings of a desk on a database of this kind."""
    if kind == "sqlite":
        yield {}
        return
    if programs() is None:
        pytest.fail("PostgreSQL is not installed; apt-get install postgresql")
    with a_postgres() as server:
        yield {"database_url": server.url}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with ExitStack() as stack:
        settings = stack.enter_context(database(request.param))
        yield stack.enter_context(
            house_in(tmp_path_factory.mktemp("house"), key_rate=10**9, webhook_hosts="hooks.invalid", **settings)
        )


@pytest.fixture(scope="module")
def there(house: House) -> Addresses:
    """Where to find a thing that is there, by the template of each route."""
    paths = house.client.get("/api/v1/openapi.json").json()["paths"]
    return {path: addresses(house, path) for path in paths if "{" in path}


def attack(house: House, there: Addresses, who: Who, *, examples: int, coverage: bool) -> Counter[int]:
    """How often each status was answered.

    Args:
        examples: Of each operation, drawn at random.
        coverage: Whether each boundary of each field is tried too.
    """
    found = schemathesis.openapi.from_asgi(
        "/api/v1/openapi.json",
        house.client.app,
        config=SchemathesisConfig.from_dict(
            {
                "seed": 20260101,
                "headers": {} if who == "nobody" else {"Authorization": f"Bearer {house.keys['default', who]}"},
                "continue-on-failure": True,
                "checks": {"positive_data_acceptance": {"expected-statuses": REFUSALS}},
                "generation": {"max-examples": examples, "no-shrink": True, "database": "none"},
                "phases": {"coverage": {"enabled": coverage}, "stateful": {"max-steps": 5}},
            }
        ),
    )

    @found.hook
    def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
        """Half of the things that are asked for are there; what events are asked of is at rest, else they never end."""
        if case.operation.path.endswith("/events"):
            for job in house.desk.jobs.page("default", before=None, limit=1000, status="queued"):
                house.desk.stop(actor(), job.id, "cancel")
        positive = case.meta is not None and case.meta.generation.mode.is_positive
        if positive and case.path_parameters and (number := len(str(case.path_parameters))) % 2:
            ((name, _),) = case.path_parameters.items()
            start, _, rest = case.operation.path.partition("{")
            ways = there[case.operation.path]
            address = ways[number // 2 % len(ways)]
            case.path_parameters = {name: address[len(start) : len(address) - len(rest.partition("}")[2])]}
        return case

    statuses: Counter[int] = Counter()
    problems: dict[tuple[str, str], str] = {}
    for event in from_schema(found).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            problems[type(event).__name__, ""] = repr(event)
        if isinstance(event, events.ScenarioFinished):
            record = event.recorder
            statuses.update(each.response.status_code for each in record.interactions.values() if each.response)
            for identity, checks in record.checks.items():
                for check in checks:
                    if check.failure_info is not None:
                        label = record.cases[identity].value.operation.label
                        told = f"{check.failure_info.failure}\n{check.failure_info.code_sample}"
                        problems.setdefault((check.name, label), told)
    assert not problems, "\n\n".join(f"{name} {label}\n{told}" for (name, label), told in problems.items())
    assert not [status for status in statuses if status >= 500], statuses
    return statuses


@pytest.mark.parametrize("who", EVERYBODY)
def test_every_operation_answers_everybody_as_described(house: House, there: Addresses, who: Who) -> None:
    statuses = attack(house, there, who, examples=1, coverage=False)
    expected: dict[Who, set[int]] = {"admin": {200, 202, 404, 422}, "viewer": {200, 403}, "nobody": {200, 401}}
    assert expected.get(who, {200, 404}) <= set(statuses), statuses


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("who", EVERYBODY)
def test_every_operation_answers_everybody_as_described_many_times(house: House, there: Addresses, who: Who) -> None:
    statuses: Any = attack(house, there, who, examples=100, coverage=True)
    assert sum(statuses.values()) > 1000
