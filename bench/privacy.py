"""How well personal data is found: precision and recall by kind, on texts made here, so that the truth is known.

Each text is a sentence with a slot. Half of the slots hold personal data, half hold numbers and words that look like it
and are not: dates, amounts, order numbers, timestamps, versions, ISBNs, digits behind a decimal point.

    python -m bench.privacy [--texts 4000] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ratchet.privacy.find import Finder
from ratchet.privacy.policy import Policy

NAMES = ("Jane Roe", "Amadou Diallo", "Zoë Müller", "O'Brien", "Li Wei", "Mary-Ann Smith")
HOSTS = ("example.com", "mail.example.org", "uni-köln.de", "corp.local", "example.co.uk", "sub.dept.example.edu")
POLICY = Policy.from_json({"default": "redact", "names": list(NAMES), "patterns": {"CUSTOMER_ID": "C-[0-9]{6}"}})


def digits(rng: random.Random, n: int) -> str:
    """So many digits, the first of them not 0."""
    return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in range(n - 1))


def luhn(body: str) -> str:
    """``body`` with its check digit."""
    total = sum(sum(divmod(int(each) * (2 - at % 2), 10)) for at, each in enumerate(reversed(body)))
    return body + str(-total % 10)


def card(rng: random.Random) -> str:
    """A card number that some issuer could have given, in one of the ways to write it."""
    prefix, n = rng.choice((("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16)))
    number = luhn(prefix + "".join(str(rng.randint(0, 9)) for _ in range(n - 1 - len(prefix))))
    sizes = (4, 6, 5) if n == 15 else (4, 4, 4, 4)
    groups, at = list[str](), 0
    for size in sizes:
        groups.append(number[at : at + size])
        at += size
    return rng.choice(("", " ", "-")).join(groups)


def iban(rng: random.Random) -> str:
    """An IBAN with its check digits."""
    country, bban = rng.choice(
        (
            ("DE", digits(rng, 18)),
            ("NL", f"INGB{digits(rng, 10)}"),
            ("GB", f"NWBK{digits(rng, 14)}"),
            ("FR", digits(rng, 23)),
            ("CH", digits(rng, 17)),
        )
    )
    text = "".join(str(int(each, 36)) for each in f"{bban}{country}00")
    whole = f"{country}{98 - int(text) % 97:02d}{bban}"
    return whole if rng.random() < 0.5 else " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))


def email(rng: random.Random) -> str:
    """An address."""
    first, last = rng.choice(("jane", "a.diallo", "zoe_m", "li-wei", "info+news")), digits(rng, rng.randint(1, 4))
    return f"{first}{last}@{rng.choice(HOSTS)}"


def phone(rng: random.Random) -> str:
    """A number that can be called, written as people write it."""
    area, seven = rng.choice(("212", "415", "206", "617")), f"{rng.randint(200, 998)}{digits(rng, 4)}"
    berlin, mobile, london = digits(rng, 7), digits(rng, 7), f"7{digits(rng, 3)} {digits(rng, 4)}"
    return rng.choice(
        (
            f"+1 {area} {seven[:3]} {seven[3:]}",
            f"({area}) {seven[:3]}-{seven[3:]}",
            f"{area}-{seven[:3]}-{seven[3:]}",
            f"{area}.{seven[:3]}.{seven[3:]}",
            f"+49 30 {berlin}",
            f"+49 170 {mobile}",
            f"+44 20 {london}",
            f"0170 {mobile}",
            f"+33 6 {rng.randint(10, 69)} {' '.join(digits(rng, 2) for _ in range(3))}",
            f"{area}{seven}",
        )
    )


def ssn(rng: random.Random) -> str:
    """A US social security number."""
    area = rng.choice([each for each in range(1, 900) if each != 666])
    return f"{area:03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"


def ip(rng: random.Random) -> str:
    """An address of a machine."""
    four = ".".join(str(rng.randint(1, 254)) for _ in range(4))
    return rng.choice((four, f"2001:db8::{rng.randint(1, 65535):x}:{rng.randint(1, 65535):x}"))


PERSONAL: Mapping[str, tuple[tuple[str, ...], Callable[[random.Random], str]]] = {
    "EMAIL_ADDRESS": (("Write to {} please.", "From: {}\nSubject: hello", "<{}> wrote:", "cc {}, thanks"), email),
    "PHONE_NUMBER": (("Call me at {} after 5.", "My phone: {}.", "tel {}", "You reach me by mobile {}."), phone),
    "CREDIT_CARD": (("The card {} was charged twice.", "visa {}", "I paid with {}."), card),
    "IBAN_CODE": (("Refund to {} please.", "IBAN: {}", "My account {} is new."), iban),
    "US_SSN": (("My SSN is {}.", "social security number {}", "id {} on file"), ssn),
    "IP_ADDRESS": (("Login from {} at night.", "host {} is down", "ip={}"), ip),
    "MAC_ADDRESS": (("device {}", "The adapter {} is mine."), lambda rng: rng.randbytes(6).hex(":")),
    "PERSON": (
        ("Dear {}, thanks.", "{} called.", "ask {}"),
        lambda rng: rng.choice((str, str.upper))(rng.choice(NAMES)),
    ),
    "CUSTOMER_ID": (("customer {}", "({})"), lambda rng: f"C-{digits(rng, 6)}"),
}

OTHER: Mapping[str, Callable[[random.Random], str]] = {
    "date": lambda rng: rng.choice(
        (
            f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            f"{rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.{rng.randint(1990, 2030)}",
            f"{rng.randint(1, 12):02d}/{rng.randint(1, 28):02d}/{rng.randint(1990, 2030)}",
            f"{rng.randint(1990, 2030)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}",
        )
    ),
    "time": lambda rng: f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}",
    "amount": lambda rng: rng.choice(
        (f"{rng.randint(1, 99999):,}.{rng.randint(0, 99):02d} EUR", f"${digits(rng, rng.randint(2, 9))}")
    ),
    "order number": lambda rng: rng.choice(
        (
            f"order {digits(rng, rng.randint(5, 14))}",
            f"ORD-{rng.randint(2019, 2027)}-{digits(rng, 6)}",
            f"order no. {digits(rng, 4)}-{digits(rng, 4)}-{digits(rng, 2)}",
            f"invoice number {rng.randint(2019, 2027)}{digits(rng, 7)}",
        )
    ),
    "16 digits": lambda rng: f"reference {digits(rng, 16)}",
    "timestamp": lambda rng: str(rng.randint(10**9, 2 * 10**9) * rng.choice((1, 1000, 1_000_000))),
    "decimal": lambda rng: rng.choice((repr(rng.random()), repr(rng.gauss(0, 1)), f"{rng.uniform(-180, 180):.7f}")),
    "version": lambda rng: rng.choice(("version ", "v")) + ".".join(digits(rng, 1) for _ in range(4)),
    "ISBN": lambda rng: f"ISBN 978-{digits(rng, 1)}-{digits(rng, 2)}-{digits(rng, 6)}-{rng.randint(0, 9)}",
    "tracking number": lambda rng: f"1Z{rng.randbytes(2).hex().upper()}{digits(rng, 10)}",
    "hash or UUID": lambda rng: rng.choice((rng.randbytes(20).hex(), str(uuid.UUID(bytes=rng.randbytes(16))))),
    "sum": lambda rng: f"{digits(rng, 4)} + {digits(rng, 4)} - {digits(rng, 3)} = {digits(rng, 5)}",
    "postcode": lambda rng: f"{digits(rng, 5)} Berlin",
}
SENTENCES = ("It was {} then.", "See {} for details.", "{}", "We have {}, and that is all.", "The number is {}.")


HARD: Mapping[str, Callable[[random.Random], str]] = {
    "phone number, ten digits and no word before it": lambda rng: (
        f"I am at {{{rng.choice(('212', '415'))}5{digits(rng, 6)}}}"
    ),
    "national phone number of another country": lambda rng: (
        f"phone {{{digits(rng, 3)} {digits(rng, 3)} {digits(rng, 2)}}}"
    ),
    "address spelled out": lambda rng: f"{{jane{digits(rng, 2)} at example dot com}}",
    "name that is not listed": lambda rng: f"Dear {{{rng.choice(('Ada Byron', 'Noor Khan', 'Tom Weber'))}}}, thanks.",
    "name that is listed, misspelled": lambda rng: f"Dear {{{rng.choice(('Jane Rowe', 'Zoe Muller', 'Lee Wei'))}}}",
    "postal address": lambda rng: f"I live in {{{digits(rng, 2)} Main Street, Springfield}}",
    "date of birth": lambda rng: f"born {{{rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.19{digits(rng, 2)}}}",
    "card number, bare, behind the word order": lambda rng: f"order {{{luhn('4' + digits(rng, 14))}}}",
    "IBAN in small letters": lambda rng: f"{{{iban(rng).lower()}}}",
}
"""What is personal, and hard or impossible for patterns; what is personal stands in braces."""


@dataclass
class Tally:
    """What was planted of a kind, and what was found."""

    planted: int = 0
    covered: int = 0
    found: int = 0
    wrong: int = 0

    @property
    def recall(self) -> float | None:
        """Share of what was planted that was found, all of it."""
        return self.covered / self.planted if self.planted else None

    @property
    def precision(self) -> float | None:
        """Share of what was found that was planted."""
        return 1 - self.wrong / self.found if self.found else None


@dataclass
class Outcome:
    """What a run measured.

    Attributes:
        kinds: By kind.
        harmless: What is not personal -> how many there were, and how many were taken for something.
    """

    kinds: dict[str, Tally] = field(default_factory=dict)
    harmless: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: int = 0
    seconds: float = 0.0
    missed: list[tuple[str, str]] = field(default_factory=list)
    mistaken: list[tuple[str, str]] = field(default_factory=list)


def measured(texts: int, *, seed: int) -> Outcome:
    """Precision and recall on so many texts."""
    rng, outcome = random.Random(seed), Outcome(texts=texts)
    finder = Finder(POLICY.sealed(bytes(32)), bytes(32))
    kinds = {kind: Tally() for kind in PERSONAL}
    there, taken = Counter[str](), Counter[str]()
    for at in range(texts):
        if at % 2 == 0:
            kind = rng.choice(tuple(PERSONAL))
            sentences, make = PERSONAL[kind]
        else:
            kind = rng.choice(tuple(OTHER))
            sentences, make = SENTENCES, OTHER[kind]
        sentence, value = rng.choice(sentences), make(rng)
        start = sentence.index("{}")
        text, end = sentence.replace("{}", value), start + len(value)
        began = time.process_time()
        spans = finder.spans(text)
        outcome.seconds += time.process_time() - began
        planted = at % 2 == 0
        for span in spans:
            right = planted and span.start < end and span.end > start and span.kind == kind
            tally = kinds.setdefault(span.kind, Tally())
            tally.found += 1
            tally.wrong += not right
            if not right:
                outcome.mistaken.append((kind, text))
        if planted:
            kinds[kind].planted += 1
            hit = any(span.start <= start and span.end >= end for span in spans)
            kinds[kind].covered += hit
            if not hit:
                outcome.missed.append((kind, text))
        else:
            there[kind] += 1
            taken[kind] += bool(spans)
    outcome.kinds = kinds
    outcome.harmless = {kind: (there[kind], taken[kind]) for kind in OTHER}
    return outcome


def hard(texts: int, *, seed: int) -> dict[str, float]:
    """Share found of each sort of ``HARD``, of so many texts each."""
    rng, finder, found = random.Random(seed), Finder(POLICY.sealed(bytes(32)), bytes(32)), dict[str, float]()
    for sort, make in HARD.items():
        hits = 0
        for _ in range(texts):
            before, _, rest = make(rng).partition("{")
            value, _, after = rest.partition("}")
            start, end = len(before), len(before) + len(value)
            hits += any(span.start <= start and span.end >= end for span in finder.spans(before + value + after))
        found[sort] = hits / texts
    return found


def table(outcome: Outcome) -> str:
    """The outcome as Markdown."""

    def share(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.3f}"

    lines = ["| kind | planted | precision | recall |", "|---|---:|---:|---:|"]
    for kind, each in outcome.kinds.items():
        lines.append(f"| `{kind}` | {each.planted} | {share(each.precision)} | {share(each.recall)} |")
    lines += ["", "| not personal | texts | replaced by mistake |", "|---|---:|---:|"]
    lines += [f"| {kind} | {there} | {taken} |" for kind, (there, taken) in outcome.harmless.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="so many of the misses and mistakes")
    given = parser.parse_args()
    outcome = measured(given.texts, seed=given.seed)
    print(table(outcome))
    print("\n| hard, or impossible for patterns | recall |\n|---|---:|")
    for sort, share in hard(200, seed=given.seed).items():
        print(f"| {sort} | {share:.3f} |")
    print(f"\n{outcome.texts} texts, {outcome.seconds / outcome.texts * 1e3:.2f} ms of CPU time each")
    for kind, text in outcome.missed[: given.show]:
        print("missed  ", kind, repr(text))
    for kind, text in outcome.mistaken[: given.show]:
        print("mistaken", kind, repr(text))


if __name__ == "__main__":
    main()
