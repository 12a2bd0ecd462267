"""Reading instructions out of what a reflection LM wrote."""

from __future__ import annotations

import re

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def read_instruction(text: str) -> str | None:
    """The text inside the first fence, or the whole text when there is none; None when nothing is left.

    >>> read_instruction("Here it is:\\n```\\nAnswer in one word.\\n```\\nGood luck!")
    'Answer in one word.'
    >>> read_instruction("Answer in one word.")
    'Answer in one word.'
    """
    fenced = _FENCE.search(text)
    return (fenced.group(1) if fenced else text).strip() or None
