"""The same promises on PostgreSQL, where its programs are installed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import pytest

from ratchet.core.errors import BadRequest, InUse, StorageUnavailable
from ratchet.core.problem import content_hash
from ratchet.engine.archive import Archive, Event, Optimization
from ratchet.storage.audit import Audit
from ratchet.storage.jobs import Jobs
from ratchet.storage.keys import Keys
from ratchet.storage.ring import KeyRing
from ratchet.storage.sql import SqlArchive
from ratchet.testing import ArchiveConformance
from ratchet.testing.postgres import PostgresServer, a_postgres, programs
from ratchet.testing.service import Clock, actor


def an_optimization(identity: str) -> Optimization:
    """One that is under way."""
    return Optimization(id=identity, status="running", created_at=datetime(2026, 1, 1, tzinfo=UTC), request={})


if programs() is not None:

    @pytest.fixture(scope="module")
    def server() -> Iterator[PostgresServer]:
        with a_postgres() as server:
            yield server

    class TestSqlArchiveOnPostgres(ArchiveConformance):
        @pytest.fixture(autouse=True)
        def _storage(self, server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[None]:
            name = f"test_{content_hash(request.node.name)}"
            with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            self.url = server.url.replace("/postgres", f"/{name}")
            self.archives: list[SqlArchive] = []
            yield
            for archive in self.archives:
                archive.close()

        def opened(self) -> Archive:
            self.archives.append(SqlArchive(self.url, ring=KeyRing("a:" + "A" * 43 + "=")))
            return self.archives[-1]

        def test_what_one_process_holds_another_cannot(self) -> None:
            notebook = self.begun()
            with notebook.claimed():
                for other in (self.archives[0], self.opened()):
                    with pytest.raises(BadRequest, match="0a1b2c"), other.open("0a1b2c").claimed():
                        pytest.fail("it was held twice")
            with self.opened().open("0a1b2c").claimed():
                pass

        def test_the_audit_trail_of_two_processes_is_one_chain(self) -> None:
            self.opened()
            self.opened()
            trails = [Audit(archive, clock=Clock()) for archive in self.archives]
            for number in range(6):
                audit = trails[number % 2]
                Keys(self.archives[number % 2], audit).create(actor(), name="n", tenant="t", role="viewer")
            assert {audit.verify().number for audit in trails} == {6}

    def test_processes_that_start_together_on_an_empty_database_all_find_their_tables(server: PostgresServer) -> None:
        with psycopg.connect(server.address(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE empty")

        def begin(_: int) -> None:
            archive = SqlArchive(server.url.replace("/postgres", "/empty"))
            Jobs(archive, Audit(archive, clock=Clock()))
            archive.close()

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(begin, range(6)))

    def test_claims_outlive_a_restart_of_the_server(server: PostgresServer) -> None:
        one, other = SqlArchive(server.url), SqlArchive(server.url)
        assert one.claims.take("a")
        server.stop()
        server.start()
        assert one.claims.take("b")
        assert not other.claims.take("a")
        one.close()
        assert other.claims.take("a")
        other.close()

    def test_who_lost_a_claim_with_the_session_writes_nothing_any_more(server: PostgresServer) -> None:
        one, other = SqlArchive(server.url), SqlArchive(server.url)
        notebook = one.start(an_optimization("held"))
        with notebook.claimed():
            notebook.note(Event(kind="first"))
            notebook.flush()
            with psycopg.connect(server.address(), autocommit=True) as connection:
                ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                assert connection.execute(ended).fetchall() == [(True,)]
            while not other.claims.take("held"):
                time.sleep(0.01)
            with suppress(InUse, StorageUnavailable):
                notebook.note(Event(kind="second"))
                notebook.flush()
            one.pen.forgive("held")
            one.claims.keep()
            with pytest.raises(InUse):
                notebook.set_status("improved")
        assert [event.kind for _, event in other.open("held").events()] == ["first"]
        assert other.find("held").status == "running"
        other.claims.release("held")
        with one.open("held").claimed():
            one.open("held", anew=True).set_status("failed")
        assert other.find("held").status == "failed"
        one.close()
        other.close()
