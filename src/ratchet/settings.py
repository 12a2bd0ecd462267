"""The environment, read here and nowhere else."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What the environment says; each name carries the prefix ``RATCHET_``.

    Attributes:
        home: Where the database, the signing key and the runs are kept.
        models: Where local models are kept.
        database_url: A SQLAlchemy URL; by default a SQLite file in ``home``.
        mlflow: Whether optimizations are tracked in MLflow.
        keys: Master keys that what is stored is encrypted under, ``id:base64`` with commas between; the first wraps
            what is new. See ``ratchet.storage.ring``.
        keys_file: A file with the master keys, a line each; by default one in ``home``, made at the first start.
        retention_days: Days after which what is stored is erased, ``30`` or ``30,TENANT=7``; empty keeps everything.
        texts_in_mlflow: Whether files that hold prompts and examples are uploaded to MLflow.
        algorithm_hosts: Hosts whose algorithms may be asked, ``name`` or ``name:port``, with commas between them.
        algorithm_secret: Signs what is said to an algorithm given by its URL.
        algorithm_seconds: Patience with one turn of an algorithm that is not ours, in Python or over HTTP.
        gpu_enabled: Whether ``surrogate`` may fit its model on a GPU, where there is one.
        embedder: The function by which ``surrogate`` turns texts into vectors, ``package.module:function``; without one
            it counts hashed words.
        metrics, traces: See ``ratchet.programs.telemetry.observer_from``.
        worker_concurrency: Optimizations that one worker works on at once.
        tenant_concurrency: Optimizations of one tenant under way at once, over all workers.
        global_concurrency: Optimizations under way at once, over all workers and tenants.
        worker_slots: LM requests that one worker is meant to have under way at once; optimizations ask for shares of
            them.
        import_allow: What the service may import as a target or a metric, with commas between; ``app.*`` is all in it.
        lm_bases: Addresses of LM servers that requests to the service may name, with commas between.
        max_upload_mb: The largest upload of a data set.
        max_body_kb: The largest body of any other request.
        key_rate: Requests per minute of one key, at one server.
        request_seconds: How long a request may take to arrive, and its answer to begin.
        pii: What is done with personal data in all fields that nothing else is said of; None for ``keep``.
        pii_policy: A file that says more of it: fields, names, patterns.
        oidc_issuer, oidc_audience, oidc_jwks: The identity provider whose tokens the service takes: ``iss``, ``aud``,
            and the address of its keys; no issuer takes none.
        webhook_hosts: The only hosts that webhooks may name, with commas between; ``*.example.org`` is all in it.
        webhook_allow: Hosts, addresses and networks that webhooks may lead to although they are private or use http.
        webhook_attempts: Tries before an event is put on a webhook's list of dead letters.
        nats_url: The NATS JetStream server that all events are published to; none without one.
        event_source: The ``source`` of all events.
        oidc_role_claim, oidc_tenant_claim: The claims that say what the bearer may do, and whose things they see.
        server: The service that commands are sent to; by default they work on this machine.
        api_key, key_file: The key for it; the file goes first.
    """

    model_config = SettingsConfigDict(env_prefix="RATCHET_", populate_by_name=True)

    home: Path = Path(".ratchet")
    models: Path = Path.home() / ".cache" / "ratchet" / "models"
    database_url: str | None = None
    mlflow: bool = True
    keys: SecretStr = SecretStr("")
    keys_file: Path | None = None
    retention_days: str = ""
    texts_in_mlflow: bool = False
    algorithm_hosts: str = ""
    algorithm_secret: SecretStr = SecretStr("")
    algorithm_seconds: float = 60.0
    gpu_enabled: bool = Field(default=True, validation_alias=AliasChoices("RATCHET_GPU_ENABLED", "GPU_ENABLED"))
    embedder: str = ""
    metrics: str = ""
    traces: str = ""
    worker_concurrency: int = 32
    tenant_concurrency: int = 16
    global_concurrency: int = 256
    worker_slots: int = Field(default=256, ge=1)
    import_allow: str = ""
    lm_bases: str = ""
    max_upload_mb: float = 64.0
    max_body_kb: float = 1024.0
    key_rate: int = Field(default=6000, ge=1)
    request_seconds: float = Field(default=300.0, gt=0)
    pii: Literal["keep", "redact", "pseudonymise"] | None = None
    pii_policy: Path | None = None
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_jwks: str = ""
    oidc_role_claim: str = "role"
    oidc_tenant_claim: str = "tenant"
    webhook_hosts: str = ""
    webhook_allow: str = ""
    webhook_attempts: int = Field(default=16, ge=1)
    nats_url: str = ""
    event_source: str = "urn:ratchet"
    server: str = ""
    api_key: SecretStr = SecretStr("")
    key_file: Path | None = None

    @property
    def database(self) -> str:
        """The URL of the database."""
        return self.database_url or f"sqlite:///{self.home / 'ratchet.db'}"

    @property
    def master_keys_file(self) -> Path:
        """The file with the master keys."""
        return self.keys_file or self.home / "master.keys"

    def secret(self, variable: str | None) -> str:
        """The secret in this environment variable; that of ``RATCHET_ALGORITHM_SECRET`` without one."""
        return self.algorithm_secret.get_secret_value() if variable is None else os.environ.get(variable, "")

    @property
    def mlflow_tracking_uri(self) -> str:
        """Where MLflow writes: ``MLFLOW_TRACKING_URI``, else a SQLite file in ``home``."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"


def quiet_libraries() -> None:
    """Keep DSPy and MLflow from calling home, and MLflow from waiting long; a value that is already set stays."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow's own 7 retries of 120 seconds outlast any wait; the tracker tries again by itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


COLLECT_AFTER = (5_000, 5, 200)
"""Thresholds of Python's cycle collector. With its own, 700, 10 and 10, it went through the whole heap 51 times while
300 optimizations ran, for up to 0.9 s each in which no other thread could run, and freed next to nothing. One
program run took 2 to 3 % less CPU time with these, and with what was imported frozen."""


def collect_rarely() -> None:
    """Have Python look for cycles less often, in a process of ours: evaluations are many, and in no cycle."""
    gc.set_threshold(*COLLECT_AFTER)
