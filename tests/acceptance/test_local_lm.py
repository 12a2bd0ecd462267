"""The whole way with a real LM: SmolLM2-135M inside this process, schema decoding, no key."""

from __future__ import annotations

from pathlib import Path

import dspy
import pytest

from ratchet.begin import new_run
from ratchet.bootstrap import open_archive
from ratchet.demo import DATA
from ratchet.demo.program import program
from ratchet.engine.certificate import load_or_make_key
from ratchet.options import Options
from ratchet.prepare import Given
from ratchet.programs.lm import DEFAULT_LOCAL, LOCAL_MODELS, pull
from ratchet.publish import publish, verify
from ratchet.settings import Settings


@pytest.mark.timeout(600)
def test_a_real_lm_is_optimized_proven_and_verified_within_its_budget(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    assert pull(DEFAULT_LOCAL, settings.models).name == LOCAL_MODELS[DEFAULT_LOCAL].file
    options = Options(
        target="ratchet.demo.program:program",
        data=str(DATA),
        metric="json_fields",
        lm="local",
        algorithms=("bootstrap",),
        max_calls=40,
        force=True,
    )
    archive = open_archive(settings)
    run = new_run(options, Given(), settings, archive)

    result = run.execute()
    files = publish(run, result, tmp_path / "out", key=load_or_make_key(settings.home))

    assert result.status in ("improved", "no_proven_gain")
    spend = result.optimization_details.spend
    assert 0 < spend.calls <= 40
    assert spend.prompt_tokens > 100 * spend.calls / 2
    assert spend.usd == 0.0
    rows = [row for row, _ in run.notebook.evaluations()]
    assert sum(row.prediction is not None for row in rows) > 0.8 * len(rows)
    assert {row.prediction["queue"] for row in rows if row.prediction} <= {
        "billing",
        "delivery",
        "returns",
        "technical",
        "account",
    }
    loaded = program()
    loaded.load(str(tmp_path / "out" / "program.json"))
    assert isinstance(loaded, dspy.Module)
    assert result.comparison is not None
    certificate = next(path for path in files if path.name == "certificate.json")
    assert verify(certificate, archive)
