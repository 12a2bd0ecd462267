"""Bearer tokens of an identity provider: only whole ones, meant for us, and with a role here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi.testclient import TestClient

from ratchet.core.errors import BadRequest
from ratchet.service.app import create_app
from ratchet.testing.http_server import HttpServer, Quiet
from ratchet.testing.service import Clock, RecordingQueue, desk_in

ISSUER, AUDIENCE = "https://id.example.org", "ratchet"


class Provider(HttpServer):
    """An identity provider; it tells its keys on a port of this machine."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def url(self) -> str:
        """Where its keys are."""
        return f"http://127.0.0.1:{self.port}/keys"

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Tells them."""
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        told = json.dumps({"keys": [{**public, "kid": "1", "use": "sig", "alg": "RS256"}]}).encode()

        class Keys(Quiet, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(told)

        return Keys

    def token(self, *, key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        """A token; a claim of None is left out."""
        now = time.time()
        usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 300}
        given = {**usual, "role": "developer", "tenant": "lab", **claims}
        kept = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(kept, key or self.key, algorithm=algorithm, headers={"kid": "1"})


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def client(provider: Provider, tmp_path: Path) -> Iterator[TestClient]:
    oidc = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks": provider.url}
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock(), **oidc)
    with TestClient(create_app(desk)) as client:
        yield client
    desk.close()


def status(client: TestClient, token: str, *, method: str = "GET", path: str = "/api/v1/targets", **more: Any) -> int:
    return int(client.request(method, path, headers={"Authorization": f"Bearer {token}"}, **more).status_code)


def test_a_token_is_as_good_as_a_key(client: TestClient, provider: Provider) -> None:
    token = provider.token()
    target = {"name": "t", "signature": "a -> b"}
    assert status(client, token, method="POST", json=target) == 201
    assert status(client, token, path="/api/v1/targets/t") == 200
    assert status(client, token, path="/api/v1/audit") == 403
    assert status(client, provider.token(tenant="elsewhere"), path="/api/v1/targets/t") == 404
    many = provider.token(role=["viewer", "something", "operator"])
    entry = client.get("/api/v1/audit", headers={"Authorization": f"Bearer {many}"}).json()["items"][0]
    assert (entry["action"], entry["who"]) == ("target.create", "token ada")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": time.time() - 120},
        {"exp": None},
        {"iat": time.time() + 600},
        {"nbf": time.time() + 600},
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://evil.example.org"},
        {"sub": None},
        {"role": "king"},
        {"role": None},
        {"tenant": None},
        {"tenant": "a/b"},
        {"tenant": ["lab"]},
    ],
)
def test_a_token_that_is_not_meant_for_now_for_us_or_for_here_is_refused(
    client: TestClient, provider: Provider, claims: dict[str, Any]
) -> None:
    assert status(client, provider.token(**claims)) == 401


def test_clocks_may_be_a_minute_apart(client: TestClient, provider: Provider) -> None:
    now = time.time()
    assert status(client, provider.token(iat=now + 30, exp=now + 300)) == 200
    assert status(client, provider.token(exp=now - 30)) == 200


def test_a_token_that_somebody_else_made_is_refused(client: TestClient, provider: Provider) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert status(client, provider.token(key=other)) == 401
    head, body, signature = provider.token().split(".")
    assert status(client, f"{head}.{body}.") == 401
    assert status(client, f"{head}.{body}x.{signature}") == 401
    assert status(client, provider.token(key=b"x" * 64, algorithm="HS256")) == 401
    assert status(client, jwt.encode({"sub": "ada"}, None, algorithm="none")) == 401  # type: ignore[arg-type]


def test_a_provider_that_does_not_answer_is_not_the_bearers_fault(provider: Provider, tmp_path: Path) -> None:
    oidc = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks": "http://127.0.0.1:9/keys"}
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock(), **oidc)
    with TestClient(create_app(desk)) as client:
        assert status(client, provider.token()) == 503
    desk.close()


def test_a_configuration_with_holes_is_refused(tmp_path: Path) -> None:
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock(), oidc_issuer=ISSUER)
    with pytest.raises(BadRequest, match="RATCHET_OIDC_AUDIENCE"):
        create_app(desk)
    desk.close()
