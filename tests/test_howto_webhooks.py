"""The page on webhooks does what it says."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from ratchet.webhook import sign

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "webhooks.md"


def test_the_receiver_on_the_page_knows_what_was_sent_from_what_was_not() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    secret, body, now = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"id": "evt_a_1"}', int(time.time())

    def headers(at: int, signature: str) -> dict[str, str]:
        return {"webhook-id": "evt_a_1", "webhook-timestamp": str(at), "webhook-signature": signature}

    check, signature = names["is_from_ratchet"], sign(secret, "evt_a_1", now, body)
    assert check(secret, headers(now, signature), body)
    assert check(secret, headers(now, f"v1,abc {signature}"), body)
    assert not check(secret, headers(now, signature), body + b" ")
    assert not check(secret, headers(now + 1, signature), body)
    assert not check("whsec_AAAA", headers(now, signature), body)
    old = now - 3600
    assert not check(secret, headers(old, sign(secret, "evt_a_1", old, body)), body)
