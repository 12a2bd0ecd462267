"""The demo program as people first write it: a signature, a bare instruction, no demos."""

from __future__ import annotations

from typing import Literal

import dspy


class SortMail(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """Read the customer's message and fill in the fields."""

    message: str = dspy.InputField()
    order: str = dspy.OutputField()
    product: str = dspy.OutputField()
    queue: Literal["billing", "delivery", "returns", "technical", "account"] = dspy.OutputField()


def program() -> dspy.Module:
    """A fresh, unoptimized program."""
    return dspy.Predict(SortMail)
