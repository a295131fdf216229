"""Task items made by code: small things that a language model can do, asked for in a few shots.

Each family is a function of a random generator and a number of items. An item is a prompt and its
possible answers, the right one first; one answer alone is to be given greedily, token by token.
"""

import itertools
import random
from collections.abc import Callable, Mapping

Item = tuple[str, tuple[str, ...]]
Family = Callable[[random.Random, int], list[Item]]

_SHOTS = 4
_WORDS = (
    "apple river stone cloud tiger lemon candle garden silver window pepper button forest hammer "
    "island kettle ladder marble needle orange pencil rabbit saddle ticket violin wagon yellow "
    "basket castle dragon engine feather guitar honey iron jacket"
)
_PLACES = "box bag drawer bucket cupboard suitcase"
_NAMES = "Anna Ben Clara David Emma Frank"
_CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Greece Athens, "
    "Austria Vienna, Poland Warsaw, Hungary Budapest, Russia Moscow, Ukraine Kiev, Norway Oslo, "
    "Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Ireland Dublin, England London, "
    "Scotland Edinburgh, Belgium Brussels, Japan Tokyo, China Beijing, Thailand Bangkok, "
    "Vietnam Hanoi, Indonesia Jakarta, Turkey Ankara, Iran Tehran, Iraq Baghdad, Syria Damascus, "
    "Lebanon Beirut, Egypt Cairo, Kenya Nairobi, Ethiopia Addis, Libya Tripoli, Cuba Havana, "
    "Peru Lima, Chile Santiago, Canada Ottawa, Venezuela Caracas, Ecuador Quito, Romania Bucharest"
)
_SYMBOLS = "gold Au, silver Ag, iron Fe, sodium Na, potassium K, copper Cu, lead Pb, tin Sn"
_OPPOSITES = (
    "hot cold, big small, up down, left right, good bad, black white, day night, love hate, "
    "open closed, old new, rich poor, war peace, life death, happy sad, fast slow, high low, "
    "strong weak, early late, north south, east west"
)
_NUMBERS = (
    "days,a week,seven; months,a year,twelve; hours,a day,24; minutes,an hour,60; "
    "seconds,a minute,60; sides,a triangle,three; sides,a square,four; legs,a spider,eight"
)


def _one_digit(generator: random.Random, count: int) -> list[Item]:
    pairs = list(itertools.product(range(10), range(10)))
    return _sums(pairs, generator, count)


def _two_digits(generator: random.Random, count: int) -> list[Item]:
    pairs = list(itertools.product(range(10, 100), range(10, 100)))
    return _sums(pairs, generator, count)


def _sums(pairs: list[tuple[int, int]], generator: random.Random, count: int) -> list[Item]:
    items: list[Item] = []
    for asked in generator.sample(pairs, min(count, len(pairs))):
        shots = [pair for pair in generator.sample(pairs, _SHOTS + 1) if pair != asked][:_SHOTS]
        lines = "".join(f"{a} + {b} = {a + b}\n" for a, b in shots)
        items.append((f"{lines}{asked[0]} + {asked[1]} =", (f" {sum(asked)}",)))
    return items


def _key_value(generator: random.Random, count: int) -> list[Item]:
    items: list[Item] = []
    for _ in range(count):
        keys = generator.sample(_WORDS.split(), 6)
        values = generator.sample(range(10, 100), 6)
        lines = "".join(f"{key}: {value}\n" for key, value in zip(keys, values, strict=True))
        asked = generator.randrange(6)
        items.append((f"{lines}\n{keys[asked]}:", (f" {values[asked]}",)))
    return items


def _copying(generator: random.Random, count: int) -> list[Item]:
    items: list[Item] = []
    for _ in range(count):
        rows = [" ".join(generator.sample(_WORDS.split(), 5)) for _ in range(2)]
        prompt = f"Say: {rows[0]}\nRepeat: {rows[0]}\nSay: {rows[1]}\nRepeat:"
        items.append((prompt, (f" {rows[1]}",)))
    return items


def _booleans(generator: random.Random, count: int) -> list[Item]:
    def expression() -> tuple[str, bool]:
        first, second = generator.random() < 0.5, generator.random() < 0.5
        negated = generator.random() < 0.5
        word = generator.choice(("and", "or"))
        value = first and second if word == "and" else first or second
        text = f"({first} {word} {second})"
        return (f"not {text}", not value) if negated else (text, value)

    items: list[Item] = []
    for _ in range(count):
        lines = "".join(f"{text} = {value}\n" for text, value in (expression() for _ in range(6)))
        text, value = expression()
        items.append((f"{lines}{text} =", (f" {value}", f" {not value}")))
    return items


def _tracking(generator: random.Random, count: int) -> list[Item]:
    items: list[Item] = []
    for _ in range(count):
        things, places = generator.sample(_WORDS.split(), 2), generator.sample(_PLACES.split(), 4)
        name = generator.choice(_NAMES.split())
        asked = generator.randrange(2)
        where = [places[0], places[1]]
        story = "".join(
            f"The {thing} is in the {place}. " for thing, place in zip(things, where, strict=True)
        )
        moved = generator.randrange(2)
        where[moved] = places[2]
        story += f"{name} takes the {things[moved]} and puts it in the {places[2]}. "
        others = tuple(f" {place}" for place in places if place != where[asked])
        items.append((f"{story}Now the {things[asked]} is in the", (f" {where[asked]}", *others)))
    return items


def _facts(generator: random.Random, count: int) -> list[Item]:
    def pairs(text: str) -> list[list[str]]:
        return [entry.split() for entry in text.split(", ")]

    items: list[Item] = [
        *((f"The capital of {a} is", (f" {b}",)) for a, b in pairs(_CAPITALS)),
        *((f"The chemical symbol for {a} is", (f" {b}",)) for a, b in pairs(_SYMBOLS)),
        *((f"The opposite of {a} is", (f" {b}",)) for a, b in pairs(_OPPOSITES)),
    ]
    for entry in _NUMBERS.split("; "):
        what, whole, number = entry.split(",")
        items.append((f"The number of {what} in {whole} is", (f" {number}",)))
    return generator.sample(items, min(count, len(items)))


FAMILIES: Mapping[str, Family] = {
    "one-digit addition": _one_digit,
    "two-digit addition": _two_digits,
    "key-value retrieval": _key_value,
    "facts known before": _facts,
    "boolean expressions": _booleans,
    "object tracking": _tracking,
    "copying": _copying,
}
KNOWN_BEFORE = "facts known before"  # counted are those that the unedited model gets right
