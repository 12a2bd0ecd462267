"""An LM and what names it among all that ever were."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from ratchet.programs.lm import NamedLM


def shared_as(**options: Any) -> str | None:
    return NamedLM(lm=dspy.LM("openai/m", api_key="k", **options), name="m", identity="openai/m").shared_as


def test_replies_are_shared_by_server(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [shared_as(), shared_as(api_base="http://a/v1"), shared_as(base_url="http://b/v1")]
    names += [shared_as(extra_headers={"x-model": "other"}), shared_as(model_type="text")]
    for variable in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.setenv(variable, f"http://{variable}/v1")
        names.append(shared_as())
    assert len(set(names)) == len(names)
    assert shared_as(base_url="http://a/v1") == shared_as(api_base="http://a/v1") == "openai/m http://a/v1"
