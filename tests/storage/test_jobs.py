"""What is wanted of optimizations, and how they end."""

from __future__ import annotations

from pathlib import Path

from ratchet.options import Options
from ratchet.testing.lm_server import SIGNATURE
from ratchet.testing.service import BASE, Clock, RecordingQueue, actor, data, desk_in


def test_an_end_is_told_once_whoever_tells_it_again(tmp_path: Path) -> None:
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock())
    (tmp_path / "mails.jsonl").write_bytes(data())
    desk.keep_dataset(actor(), "mails", tmp_path / "mails.jsonl")
    asked = Options(target="", lm="openai/stub", lm_base=BASE, algorithms=("gepa",), max_calls=150, force=True)
    job = desk.optimize(actor(), asked, target={"signature": SIGNATURE}, data={"data": "mails"})
    assert desk.jobs.begin(actor(), job.id, 1) is not None
    desk.archive.open(job.id).set_status("failed", error="the LM is away")
    desk.jobs.note_end(actor(), job.id, 1, status="failed", reason="the LM is away")
    desk.jobs.note_end(actor(), job.id, 1, status="failed", reason="another worker says so too")
    ended = [event for event in desk.events.of(job.id, after=0) if event.kind == "ended"]
    assert [event.payload for event in ended] == [{"status": "failed", "reason": "the LM is away"}]
    assert desk.jobs.find("default", job.id).reason == "the LM is away"

    again = desk.resume(actor(), job.id)
    desk.jobs.note_end(actor(), job.id, 1, status="failed", reason="a worker of the first attempt, late")
    assert desk.jobs.find("default", job.id).status == "queued"
    assert again.attempt == 2
    ends = [entry for entry in desk.audit.entries("default") if entry.action == "optimization.end"]
    assert len(ends) == 1
    desk.close()
