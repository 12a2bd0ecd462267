"""Every algorithm there is, by name: Ratchet's own, DSPy's, those that packages bring, those behind a URL.

A name on the command line is looked up in this order:

1. a built-in name (``gepa``, ``dspy.miprov2``);
2. a name registered with ``ratchet algorithms add``, which stands for a URL;
3. an entry point in the group ``ratchet.algorithms`` of an installed package;
4. a URL (``http://127.0.0.1:9000/climb``);
5. a function (``climb.py:climb``, ``package.module:function``).

Code that is not Ratchet's own is imported only when it is asked for.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ratchet.algorithms import NATIVE
from ratchet.core.algorithm import Search
from ratchet.core.contract import limited, watched
from ratchet.core.errors import BadRequest, StorageUnavailable, UnknownName
from ratchet.core.problem import content_hash
from ratchet.engine.archive import Event, Notebook
from ratchet.programs.files import written_whole
from ratchet.programs.remote_algorithm import Address, AllowedHosts, Link, RemoteAlgorithm
from ratchet.programs.targets import load_attribute
from ratchet.programs.teleprompter import TELEPROMPTERS
from ratchet.settings import Settings

GROUP = "ratchet.algorithms"
BUILT_IN = (*NATIVE, *TELEPROMPTERS)
FILE = "algorithms.json"


class AddressBook:
    """The algorithms registered in one installation, in a file of its home.

    Args:
        home: The folder.
    """

    def __init__(self, home: Path) -> None:
        self._file = home / FILE

    def read(self) -> dict[str, Address]:
        """All of them, by name.

        Raises:
            StorageUnavailable: the file cannot be read.
        """
        try:
            text = self._file.read_text(encoding="utf-8")
            return {name: Address(**each) for name, each in json.loads(text).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise StorageUnavailable(f"{self._file} cannot be read: {error}") from error

    def add(self, name: str, address: Address) -> None:
        """Register ``address`` under ``name``; one that was there is replaced.

        Raises:
            BadRequest: the name is taken, or is none.
        """
        check_name(name)
        self._write({**self.read(), name: address})

    def remove(self, name: str) -> None:
        """Forget ``name``.

        Raises:
            UnknownName: it is not registered.
        """
        known = self.read()
        if name not in known:
            raise UnknownName(f"no algorithm is registered as {name!r}; there are {', '.join(known) or 'none'}")
        self._write({key: value for key, value in known.items() if key != name})

    def _write(self, known: Mapping[str, Address]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._file) as part:
                part.write_text(json.dumps({name: asdict(each) for name, each in known.items()}, indent=2) + "\n")
        except OSError as error:
            raise StorageUnavailable(f"{self._file} cannot be written: {error.strerror}") from error


def check_name(name: str) -> None:
    """See whether an algorithm may be registered as ``name``.

    Raises:
        BadRequest: the name is taken, or is none.
    """
    if name in (*BUILT_IN, "auto"):
        raise BadRequest(
            f"the name {name!r} is that of a built-in algorithm; choose another one", field="name", value=name
        )
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise BadRequest(f"{name!r} is no name; use letters, digits, '-', '_' and '.'", field="name", value=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom:
    """An algorithm that is not built in.

    Attributes:
        name: What it was called by.
        source: Where it comes from, in a few words.
        search: What it is; None when it is behind a URL.
        link: How its server is talked to; None when it is a function.
        seconds: Patience with one turn of a function; a link has its own.
    """

    name: str
    source: str
    search: Search | None = None
    link: Link | None = None
    seconds: float = field(default_factory=lambda: Settings().algorithm_seconds)

    @property
    def identity(self) -> str:
        """Changes when the file that the search stands in does; a server is held to its own answers instead."""
        file = _file(self.search)
        text = Path(file).read_bytes() if file is not None and Path(file).is_file() else self.source.encode()
        return hashlib.sha256(text).hexdigest()[:16]


def _file(search: Search | None) -> str | None:
    """The file that ``search``, a function or a callable object, stands in; None where there is none."""
    found: Any = search
    while isinstance(found, partial):
        found = found.func
    found = inspect.unwrap(found)
    if not (inspect.isroutine(found) or inspect.isclass(found)):
        found = type(found)
    try:
        return inspect.getsourcefile(found)
    except TypeError:  # it is built in
        return None


def find(name: str, settings: Settings, registered: Mapping[str, Address] = MappingProxyType({})) -> Custom:
    """The algorithm that is not built in and called ``name``.

    Args:
        registered: Addresses beside those of the installation; they go first.

    Raises:
        UnknownName: there is none.
        BadRequest: it cannot be imported, is no algorithm, or may not be asked.
    """
    known = {**AddressBook(settings.home).read(), **registered}
    if name in known:
        return Custom(name=name, source=known[name].url, link=_link(name, known[name], settings))
    if entries := tuple(entry_points(group=GROUP, name=name)):
        return Custom(
            name=name, source=_source(entries[0]), search=_loaded(name, entries), seconds=settings.algorithm_seconds
        )
    if name.startswith(("http://", "https://")):
        return Custom(name=name, source=name, link=_link(name, Address(url=name), settings))
    module, colon, attribute = name.rpartition(":")
    if colon and module and attribute:
        search = a_search(load_attribute(module, attribute, what="algorithm"), name)
        return Custom(name=name, source=name, search=search, seconds=settings.algorithm_seconds)
    more = sorted({*known, *entry_points(group=GROUP).names} - set(BUILT_IN))
    raise UnknownName(f"there is no algorithm {name!r}; there are auto, {', '.join((*sorted(BUILT_IN), *more))}")


def _link(name: str, address: Address, settings: Settings) -> Link:
    variable = address.secret_env
    secret = settings.secret(variable)
    if variable is not None and not secret:
        raise BadRequest(f"the secret of the algorithm {name} is to be in {variable}, which is not set")
    hosts = AllowedHosts.from_text(settings.algorithm_hosts)
    return Link(url=address.url, secret=secret, hosts=hosts, seconds=settings.algorithm_seconds)


def any_search(name: str, settings: Settings, registered: Mapping[str, Address] = MappingProxyType({})) -> Search:
    """The algorithm called ``name``, built in or not, as a search.

    Args:
        registered: As in ``find``.

    Raises:
        UnknownName: there is none.
        BadRequest: it owns its loop, cannot be imported, is no algorithm, or may not be asked.
    """
    if name in NATIVE:
        return NATIVE[name]
    if name in TELEPROMPTERS:
        raise BadRequest(f"{name} owns its loop, so there are no turns of it to look at")
    custom = find(name, settings, registered)
    if custom.link is not None:
        return RemoteAlgorithm(link=custom.link, identity=f"check-{content_hash(name)[:6]}")
    assert custom.search is not None
    return custom.search


def searches(
    custom: Mapping[str, Custom], *, identity: str, notebook: Notebook, check: Callable[[], None]
) -> dict[str, Search]:
    """Each as a search that is stopped at the first turn that breaks the contract.

    What servers answer is noted, so that a resumed search is the same or is told that it is not.

    Args:
        identity: Names the optimization.
        check: Raises when it was stopped.
    """
    noted: dict[tuple[str, int], str] = {}
    for _, event in notebook.events():
        match event:
            case Event(kind="turn", payload={"session": session, "turn": turn, "digest": digest}):
                noted[session, turn] = digest

    def note(session: str, turn: int, digest: str) -> None:
        notebook.note(Event(kind="turn", payload={"session": session, "turn": turn, "digest": digest}))

    def search(each: Custom) -> Search:
        if each.link is None:
            assert each.search is not None
            return limited(watched(each.search, each.name), each.name, seconds=each.seconds, check=check)
        name = f"{identity}-{content_hash(each.name)[:6]}"
        link = replace(each.link, check=check)
        return watched(RemoteAlgorithm(link=link, identity=name, noted=noted, note=note), each.name)

    return {name: search(each) for name, each in custom.items()}


def _loaded(name: str, entries: tuple[EntryPoint, ...]) -> Search:
    if len(entries) > 1:
        sources = " and ".join(_source(each) for each in entries)
        raise BadRequest(f"the algorithm {name!r} is brought by {sources}; remove one of them")
    (entry,) = entries
    what = f"the algorithm {name!r} ({_source(entry)})"
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:  # a package's code is foreign code
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
        place = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames[1:] else ""
        raise BadRequest(f"{what} cannot be imported: {type(error).__name__}: {error}{place}") from error
    return a_search(found, what)


def _source(entry: EntryPoint) -> str:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
    return f"{package}, {entry.value}"


def a_search(found: Any, what: str) -> Search:
    """``found``, when it can be called as an algorithm is.

    Raises:
        BadRequest: it cannot.
    """
    if not callable(found):
        raise BadRequest(f"{what} is of type {type(found).__name__}; an algorithm is a function of (problem, *, rng)")
    try:
        signature = inspect.signature(found)
        signature.bind(object(), rng=object())
    except TypeError as error:
        raise BadRequest(f"{what} takes {signature}; an algorithm is a function of (problem, *, rng)") from error
    except ValueError:
        pass  # a callable that does not tell what it takes
    search: Search = found
    return search


def listed(settings: Settings) -> list[dict[str, str]]:
    """Name, kind and source of all that are not built in; nothing of theirs is imported."""
    known = AddressBook(settings.home).read()
    found = [{"name": name, "kind": "URL", "what": each.url} for name, each in sorted(known.items())]
    taken = {*BUILT_IN, *known, "auto"}
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        hidden = " (not used: the name is taken)" if entry.name in taken else ""
        found.append({"name": entry.name, "kind": "package", "what": _source(entry) + hidden})
    return found
