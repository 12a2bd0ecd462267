"""Whether a locked dependency is known to be vulnerable, or was taken back by who made it.

    make audit

First ``pip-audit`` asks PyPI's vulnerability service about every pin of ``requirements.lock``. A pin that the service
does not know was not audited, and is counted as that: behind a mirror that does not pass the service on, pip-audit
itself says "no known vulnerabilities", and means that it found no answer. Then ``uv`` resolves the pins against the
index, which says of a release when it was yanked, and why; any mirror passes this on.

Exit codes: 0 everything was looked up, and each finding is explained in ``docs/security.md``; 1 a finding is not; 2 the
vulnerability service could not be asked, so that only yanked releases were looked for.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
EXPLAINED = ROOT / "docs" / "security.md"
YANKED = re.compile(r"^warning: `(?P<pin>[^`]+)` is yanked(?: \(reason: \"(?P<reason>.*)\"\))?", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is known of a pin.

    Attributes:
        pin: Name and version.
        name: The advisory's, such as ``PYSEC-2024-1``; ``yanked`` for a release that was taken back.
        what: What is known.
    """

    pin: str
    name: str
    what: str

    def explained_in(self, text: str) -> bool:
        """Whether ``text`` has something to say of it: its name, and for a yanked release the pin.

        >>> Finding(pin="a==1", name="PYSEC-2024-1", what="").explained_in("PYSEC-2024-12 does not reach us")
        False
        """
        name = re.escape(self.pin if self.name == "yanked" else self.name)
        return re.search(rf"(?<![\w.-]){name}(?![\w-]|\.\w)", text) is not None


def advisories(report: Mapping[str, Any]) -> tuple[list[Finding], list[str], int]:
    """What pip-audit found, the pins that it could not look up, and how many it looked at.

    >>> advisories({"dependencies": [{"name": "a", "skip_reason": "not found on PyPI"}]})
    ([], ['a'], 1)
    """
    found, skipped = [], []
    for each in report["dependencies"]:
        if "skip_reason" in each:
            skipped.append(str(each["name"]))
        for vulnerability in each.get("vulns", []):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            first = vulnerability.get("description", "").partition("\n")[0]
            what = f"{first[:200]} Fixed in {fixed}."
            found.append(Finding(pin=f"{each['name']}=={each['version']}", name=vulnerability["id"], what=what))
    return found, skipped, len(report["dependencies"])


def yanked(told: str) -> list[Finding]:
    """What uv warns of.

    >>> [each.pin for each in yanked('warning: `a==1` is yanked (reason: "broken")')]
    ['a==1']
    """
    return [
        Finding(pin=each["pin"], name="yanked", what=each["reason"] or "no reason was given")
        for each in YANKED.finditer(told)
    ]


def verdict(found: Sequence[Finding], skipped: Sequence[str], looked_at: int, *, explained: str) -> tuple[str, int]:
    """What is to be said, and the exit code."""
    lines = [f"{each.pin}: {each.name}: {each.what}" for each in found]
    open_ones = [each for each in found if not each.explained_in(explained)]
    lines += [f"NOT EXPLAINED in docs/security.md: {each.pin} {each.name}" for each in open_ones]
    lines.append(f"{looked_at} pins, {len(found)} findings, {len(found) - len(open_ones)} of them explained")
    if skipped:
        lines.append(
            f"NOT AUDITED: the vulnerability service knows nothing of {len(skipped)} of {looked_at} pins; run this "
            "again where the index answers at /pypi/NAME/VERSION/json. Yanked releases were looked for all the same."
        )
    return "\n".join(lines), 1 if open_ones else 2 if skipped or not looked_at else 0


def _said_by(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def main() -> int:
    """Look, and say."""
    asked = _said_by("pip_audit", "--requirement", str(LOCK), "--disable-pip", "--no-deps", "--format", "json")
    report = json.loads(asked.stdout) if asked.stdout.startswith("{") else {"dependencies": []}
    if not report["dependencies"]:
        print(f"pip-audit could not ask at all: {asked.stderr.strip()[-300:]}", file=sys.stderr)
    found, skipped, looked_at = advisories(report)
    resolved = _said_by("uv", "pip", "compile", "--no-deps", "--universal", "--no-header", str(LOCK))
    if resolved.returncode != 0:
        print(f"uv could not ask the index: {resolved.stderr.strip()[-300:]}", file=sys.stderr)
        return 2
    found += yanked(resolved.stderr)
    text, code = verdict(found, skipped, looked_at, explained=EXPLAINED.read_text(encoding="utf-8"))
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
