"""Master keys come from the environment or a file of their owner's, and a wrong one is told from a lost one."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ratchet.core.errors import BadRequest, Conflict, KeyUnavailable, Tampered
from ratchet.storage.ring import KeyRing, new_master, parse


def written(*names: str) -> str:
    return ",".join(f"{name}:{base64.b64encode(name.encode().ljust(32)).decode()}" for name in names)


def test_the_first_key_wraps_what_is_new() -> None:
    ring = KeyRing(written("new", "old"))
    assert [master.id for master in ring.masters()] == ["new", "old"]
    assert (ring.first.id, ring.there) == ("new", True)
    assert [master.id for master in parse("# mine\n" + written("a") + "\n\n" + written("b"), source="f")] == ["a", "b"]
    assert str(ring.first.key) not in repr(ring.first)


@pytest.mark.parametrize(
    "text",
    ["nothing", "a:" + "A" * 20, "a/b:" + "A" * 43 + "=", "a:" + "!" * 44, written("a", "a"), ":" + "A" * 43 + "="],
)
def test_keys_that_cannot_be_read_are_refused_without_being_told(text: str) -> None:
    with pytest.raises(BadRequest, match="RATCHET_KEYS") as refused:
        KeyRing(text)
    assert "AAAA" not in str(refused.value)


def test_without_any_keys_there_is_no_ring() -> None:
    with pytest.raises(BadRequest, match="RATCHET_KEYS_FILE"):
        KeyRing("")


def test_a_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    rings = [KeyRing(file=tmp_path / "home" / "master.keys") for _ in range(8)]
    assert not rings[0].there
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(KeyRing.make, rings))
    assert len({ring.first for ring in rings}) == 1
    assert (tmp_path / "home" / "master.keys").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["master.keys"]


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "master.keys"
    ring = KeyRing(file=file)
    ring.make()
    file.chmod(0o640)
    with pytest.raises(BadRequest, match=f"chmod 600 {file}"):
        ring.masters()


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe", b"a:b\n"])
def test_a_file_that_holds_no_keys_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "master.keys"
    file.touch(mode=0o600)
    file.write_bytes(content)
    with pytest.raises(BadRequest, match=r"master\.keys"):
        KeyRing(file=file).masters()


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(KeyUnavailable, match=r"gone\.keys.*RATCHET_KEYS_FILE"):
        KeyRing(file=tmp_path / "gone.keys").masters()


def test_a_running_process_follows_changes_of_the_file(tmp_path: Path) -> None:
    ring, other = KeyRing(file=tmp_path / "k"), KeyRing(file=tmp_path / "k")
    ring.make()
    before = other.first
    master = new_master()
    ring.put_first(master)
    assert [each.id for each in other.masters()] == [master.id, before.id]
    assert other.find(before.id, before.print, owner="dataset:a") == before
    ring.drop(before.id)
    with pytest.raises(KeyUnavailable, match=f"dataset:a is under the master key {before.id}.*put it back"):
        other.find(before.id, before.print, owner="dataset:a")
    with pytest.raises(Conflict, match="older"):
        ring.drop(master.id)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600


def test_another_key_of_the_same_name_is_told_from_a_changed_one() -> None:
    right, wrong = KeyRing(written("a")), KeyRing("a:" + base64.b64encode(bytes(32)).decode())
    wrapped = right.first.wrap(b"k" * 32, "here")
    with pytest.raises(KeyUnavailable, match=f"{right.first.print}.*{wrong.first.print}"):
        wrong.find("a", right.first.print, owner="dataset:a")
    for changed in (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), b""):
        with pytest.raises(Tampered, match="wrapped key of here"):
            right.first.unwrap(changed, "here")
    with pytest.raises(Tampered):
        right.first.unwrap(wrapped, "there")
    assert right.first.unwrap(wrapped, "here") == b"k" * 32


def test_keys_in_the_environment_are_not_ours_to_change() -> None:
    with pytest.raises(Conflict, match="RATCHET_KEYS"):
        KeyRing(written("a")).put_first(new_master())


def test_keys_that_two_processes_put_in_at_once_are_both_kept(tmp_path: Path) -> None:
    rings = [KeyRing(file=tmp_path / "k") for _ in range(6)]
    rings[0].make()
    masters = [new_master() for _ in rings]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(KeyRing.put_first, rings, masters))
    assert {master.id for master in masters} < {master.id for master in rings[0].masters()}
