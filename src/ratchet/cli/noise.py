"""What other libraries say, kept from standard error."""

from __future__ import annotations

import logging
import os
import warnings
from importlib import import_module

_CHATTY = ("dspy", "LiteLLM", "litellm", "gepa", "optuna", "httpx", "httpcore", "openai", "mlflow", "alembic")


def quiet() -> None:
    """Keep libraries from talking over the progress."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read once, when tqdm is imported
    import_module("dspy")  # it sets its own logging up when it is imported, so what follows must come later
    for name in _CHATTY:
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
