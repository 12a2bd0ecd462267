"""Writes ``support_mail.jsonl``: 300 customer messages with the order, product and queue a clerk would note.

Every message comes from one seed, so the file can be written again and compared. The messages, shop and products are
invented for this project. What makes the task a task: a product may be called by a nickname but is noted by its
catalogue name, an order number may be missing ("none") or lack its letter, other numbers are in the way, and a message
may touch on what another queue handles.

    python -m ratchet.demo.make_support_mail
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

SEED = 20
PER_QUEUE = 60
FILE = Path(__file__).with_name("support_mail.jsonl")

PRODUCTS: Mapping[str, tuple[str, ...]] = {
    "Nimbus Kettle": ("kettle", "Nimbus"),
    "Sable Headphones": ("headphones", "Sable headset"),
    "Falcon Drone": ("drone", "Falcon"),
    "Pebble Speaker": ("speaker", "little Pebble"),
    "Aurora Lamp": ("lamp", "Aurora light"),
    "Tundra Cooler": ("cooler", "cool box"),
    "Juniper Tent": ("tent", "Juniper"),
    "Cobalt Blender": ("blender", "smoothie mixer"),
    "Atlas Backpack": ("backpack", "rucksack"),
    "Ember Heater": ("heater", "fan heater"),
    "Quartz Watch": ("watch", "smartwatch"),
    "Lynx Camera": ("camera", "Lynx cam"),
}
"""Catalogue name -> what some customers call it."""

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "billing": (
        "I was charged twice for the {p}, please check the bill.",
        "The bill for my {p} says {money}, but the shop said less.",
        "Can you send me a bill with our company name for the {p}?",
        "The discount was not taken off the bill for the {p}.",
        "Why is there a second payment on the bill for my {p}?",
        "I paid the bill for the {p} and you still ask for the money.",
        "The VAT on the bill for the {p} is wrong.",
        "Please send the invoice for the {p} again.",
        "My invoice for the {p} shows {money} too much.",
        "I need an invoice for the {p} for my tax return.",
        "My payment for the {p} was declined, but the money is gone.",
        "The gift voucher was not counted as payment for the {p}.",
        "The {p} arrived fine, but the bill has the wrong total.",
        "Can I pay the bill for the {p} in three parts?",
        "There is a fee on the bill for the {p} that nobody explained.",
        "You took {money} from my card for one {p}.",
        "The {p} is great, only the price on the invoice is too high.",
        "I got a payment reminder for the {p} although I paid last week.",
    ),
    "delivery": (
        "Where is my {p}? The delivery is late.",
        "The delivery of the {p} has not moved for {days} days.",
        "The courier says the {p} was delivered, but nobody has it.",
        "When will the {p} be delivered?",
        "Can you deliver the {p} to my office instead?",
        "I am on holiday, please deliver the {p} after the {day}.",
        "The delivery driver never rang and took the {p} away again.",
        "My {p} should have been delivered {days} days ago.",
        "Only half of the delivery came, the {p} was not in it.",
        "I paid for express delivery and the {p} is still on its way.",
        "The parcel with the {p} went to my old street.",
        "Do you deliver the {p} to Norway?",
        "What does delivery of the {p} cost to Spain?",
        "It says delivered, yet there is no {p} at my door.",
        "Which courier will deliver the {p}?",
        "Please leave the parcel with the {p} behind the garage.",
        "The bill is here, but the {p} was not delivered.",
        "Still waiting for the {p}, the parcel is stuck in customs.",
    ),
    "returns": (
        "I want to return the {p}.",
        "How do I return the {p}?",
        "The {p} is too big for us, can I return it for a smaller one?",
        "You sent a red {p} and I asked for black, I return it.",
        "I changed my mind about the {p} and would like to return it.",
        "Please send a return label for the {p}.",
        "My {p} came with a scratch, I want to send it back.",
        "You got my return of the {p} {days} days ago and sent no refund yet.",
        "I got two of the {p} as presents, can I return one?",
        "The box of the {p} is open, may I still return it?",
        "What is the last day to return the {p}?",
        "The {p} looks nothing like the picture, I am sending it back.",
        "The wrong {p} was in the parcel, how do I return it?",
        "My wife does not like the {p}, so we return it.",
        "Where do I drop off the return of the {p}?",
        "I threw away the box of the {p}, is a return possible?",
        "The {p} works, but I want to give it back for a refund.",
        "The {p} was broken on arrival, I return it, please exchange it.",
    ),
    "technical": (
        "The {p} does not work, it will not switch on.",
        "My {p} stopped working after {days} days.",
        "How do I reset the {p}?",
        "The {p} makes a loud noise when it works.",
        "The battery of my {p} does not work for more than an hour.",
        "I cannot connect the {p} to my phone.",
        "A red light blinks on the {p}, what does it mean?",
        "The app of the {p} does not work.",
        "After the software update the {p} does not work any more.",
        "I have a technical question about the {p}.",
        "The {p} gets very hot, is that a technical fault?",
        "Which spare part fits the {p}? It is broken.",
        "The {p} shows error {code} and does not work.",
        "I pressed every button and the {p} does not start.",
        "The delivery was quick, but the {p} does not work.",
        "Does the {p} need a software update?",
        "Water got into the {p} and it is broken, how can I repair it?",
        "The {p} worked yesterday, today it does not start.",
    ),
    "account": (
        "I cannot log in to my account to register my {p}.",
        "I forgot the password of my account and want to see my {p} there.",
        "Please change the e-mail address of my account, I bought the {p} with the old one.",
        "How do I delete my account? I only needed it for the {p}.",
        "My account gets newsletters about the {p}, please stop them.",
        "My account is locked since I ordered the {p}.",
        "The {p} does not show up in my account.",
        "I married and need my new name in the account with the {p}.",
        "I cannot sign in to my account to review the {p}.",
        "Can I merge two accounts? The {p} is in the other one.",
        "Somebody else has used my account and looked at my {p}.",
        "The points for the {p} are missing in my account.",
        "I would like to open a business account, we use the {p}.",
        "Please remove my phone number from my account, I gave it for the {p}.",
        "The password link is expired, I need it to register the {p}.",
        "Which data is in my account besides the {p}?",
        "I registered the {p} twice, please correct my account.",
        "The login fails whenever I open the page of my {p}.",
    ),
}
"""Queue -> sentences; ``{p}`` is the product in the customer's words."""

GREETINGS = (
    "Hi,",
    "Hello,",
    "Good morning,",
    "Dear team,",
    "hey",
    "Hi there!",
    "To whom it may concern,",
    "Hello again,",
)
ORDERS = (
    "My order is {o}.",
    "Order {o}.",
    "It is about order {o}.",
    "(order {o})",
    "The number is {o}.",
    "Order no. {o}, bought in {month}.",
    "ref {o}",
    "I ordered it as {o}.",
    "{o} is the order.",
    "You find it under {o}.",
)
ASIDES = (
    "I have been a customer for {days} years.",
    "My phone is 0{phone}.",
    "I already wrote on the {day}.",
    "We are a family of 5.",
    "I live on the 4th floor.",
    "It cost {money}.",
    "It was a present for my son.",
    "I waited {days} minutes on the phone.",
    "Your colleague could not help.",
    "This is the third time I write.",
    "My customer number is {phone}.",
    "I saw it in the sale.",
)
CLOSINGS = (
    "Thanks!",
    "Please help.",
    "Regards, {name}",
    "Thank you, {name}",
    "I am quite annoyed.",
    "Cheers",
    "Asap please!!",
)
NAMES = ("Mara", "Tom", "Ines", "Jonas", "Priya", "Olu", "Wen", "Sofia")
MONTHS = ("March", "April", "June", "August", "October")


def typo(sentence: str, rng: random.Random) -> str:
    """``sentence`` with two letters swapped in one of its longer words; slots are left alone."""
    words = sentence.split(" ")
    long = [i for i, word in enumerate(words) if word.isalpha() and len(word) >= 5]
    if long:
        i = rng.choice(long)
        word, at = words[i], rng.randrange(1, len(words[i]) - 2)
        words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def mail(queue: str, pattern: str, rng: random.Random) -> dict[str, str]:
    """One message and what is noted of it."""
    product = rng.choice(list(PRODUCTS))
    called = product if rng.random() < 0.9 else rng.choice(PRODUCTS[product])
    digits = f"{rng.randrange(10_000, 100_000)}"
    order = f"A-{digits}" if rng.random() < 0.9 else "none"
    written = rng.choices((order, order.lower(), digits), weights=(92, 5, 3))[0]

    sentence = typo(pattern, rng) if rng.random() < 0.12 else pattern
    parts = [sentence]
    if order != "none":
        parts.insert(rng.choice((0, 1, 1)), rng.choice(ORDERS))
    if rng.random() < 0.18:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(ASIDES))
    if rng.random() < 0.2:
        parts.insert(0, rng.choice(GREETINGS))
    if len(parts) < 4 and rng.random() < 0.2:
        parts.append(rng.choice(CLOSINGS))
    message = " ".join(parts).format(
        p=called,
        o=written,
        money=f"{rng.randrange(19, 240)}.{rng.choice(('00', '50', '90', '99'))} EUR",
        days=rng.randrange(2, 15),
        day=f"{rng.randrange(4, 21)}th",
        code=f"E{rng.randrange(10, 99)}",
        phone=rng.randrange(1_000_000, 10_000_000),
        month=rng.choice(MONTHS),
        name=rng.choice(NAMES),
    )
    if rng.random() < 0.03:
        message = message.lower()
    return {"message": message, "order": order, "product": product, "queue": queue}


def mails() -> list[dict[str, str]]:
    """All messages, shuffled; no two alike."""
    rng = random.Random(SEED)
    rows: dict[str, dict[str, str]] = {}
    for queue, patterns in PATTERNS.items():
        made = 0
        while made < PER_QUEUE:
            row = mail(queue, patterns[made % len(patterns)], rng)
            if row["message"] not in rows:
                rows[row["message"]] = row
                made += 1
    shuffled = list(rows.values())
    rng.shuffle(shuffled)
    return shuffled


if __name__ == "__main__":
    FILE.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in mails()), encoding="utf-8")
