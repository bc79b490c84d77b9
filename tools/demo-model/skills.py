"""One user request and its right answer, per skill.

Every function takes a random generator and the side of the split its material comes from.
Training calls them with held_out=False only, so nothing measured was ever seen.
"""

import re

import offtopic
import phrases as P
import words

MAX_WORDS = 8


def settled(text):
    """A phrase without its case, punctuation and spacing: what the split of phrasings hashes."""
    return " ".join(re.sub(r"[^\w\s'+*/-]", " ", text.lower()).split())


def phrase_held_out(text):
    return words.held_out("phrase:" + settled(text))


def noisy(rng, text):
    """What people do to punctuation and spaces. Case is noised by `casing`, before answers are made."""
    kind = rng.random()
    if kind < 0.15:
        return text.rstrip("?.!")
    if kind < 0.17:
        return text.rstrip("?.!") + rng.choice(("!", "??", "...", " ?", " ."))
    if kind < 0.19:
        return text + rng.choice((" ", "  ", "\n"))
    if kind < 0.20:
        return " " + text
    if kind < 0.22:
        return text.replace(" ", "  ", 1)
    if kind < 0.25:
        return rng.choice(("Hi! ", "Hello. ", "Hello! ", "Hey, ", "Okay, ", "Thanks. ", "Please: ")) + text
    if kind < 0.27:
        return text.rstrip("?.!") + rng.choice((", please.", " please", ", please?"))
    return text


def casing(rng, *texts):
    """All texts as they are or, at times, all in lower case: the answer copies what was typed."""
    return [text.lower() for text in texts] if rng.random() < 0.12 else list(texts)


def add(rng, held_out):
    a, b = words.pair(rng, held_out)
    (template,) = casing(rng, rng.choice(P.ADD))
    return noisy(rng, template.format(a=a, b=b)), f"{a} + {b} = {a + b}."


def subtract(rng, held_out):
    a, b = words.pair(rng, held_out)
    swapped = rng.random() < 0.2
    (template,) = casing(rng, rng.choice(P.SUBTRACT_SWAPPED if swapped else P.SUBTRACT))
    return noisy(rng, template.format(a=a, b=b)), f"{a} - {b} = {a - b}."


def word_list(rng, held_out, least, most):
    # Words of a list differ, but for a few: the short lists of held-out words would repeat
    # themselves far more often than what people type.
    items = []
    wanted = rng.randint(least, most)
    if not held_out and rng.random() < 0.4:  # long lists are the hard ones
        wanted = max(wanted, rng.randint(least, most))
    while len(items) < wanted:
        item = words.word(rng, held_out)
        if item not in items or rng.random() < 0.03:
            items.append(item)
    return items


def on_words(rng, held_out, templates, answer, least=1, most=MAX_WORDS):
    items = word_list(rng, held_out, least, most)
    template, *items = casing(rng, rng.choice(templates), *items)
    comma = ", " if rng.random() < 0.15 else " "
    return noisy(rng, template.format(w=comma.join(items))), answer(items, comma)


def repeat(rng, held_out):
    return on_words(rng, held_out, P.REPEAT, lambda items, comma: comma.join(items))


def reverse(rng, held_out):
    least = 2 if held_out or rng.random() < 0.95 else 1
    return on_words(rng, held_out, P.REVERSE, lambda items, comma: comma.join(items[::-1]), least)


def count(rng, held_out):
    # Training goes a little past the stated limit, so that the limit itself is not an edge.
    most = MAX_WORDS if held_out else MAX_WORDS + 2
    return on_words(rng, held_out, P.COUNT, lambda items, _: str(len(items)), 1, most)


def introduce(rng, held_out, known=None):
    """Returns the request, the answer and the name as it was typed."""
    templates = P.RENAME if known and rng.random() < 0.5 else P.INTRODUCE
    template, name = casing(rng, rng.choice(templates), words.name(rng, held_out))
    return noisy(rng, template.format(n=name)), P.GREETED.format(n=name), name


def ask_name(rng, name):
    (template,) = casing(rng, rng.choice(P.ASK_NAME))
    return noisy(rng, template), P.NAME_KNOWN.format(n=name) if name else P.NAME_UNKNOWN


def draw_phrase(rng, make, held_out):
    """A (request, answer) of `make` whose wording is on the wanted side of the split."""
    while True:
        text, answer, always_trained = make(rng)
        if (phrase_held_out(text) and not always_trained) == held_out:
            (text,) = casing(rng, text)
            return noisy(rng, text), answer


def greet(rng, held_out):
    def make(rng):
        openings, endings, answer = rng.choice(P.SMALL_TALK)
        ending = rng.choice(endings)
        mark = "?" if "How" in answer and "well" in answer else rng.choice(".!!")
        return rng.choice(openings) + ending + mark, answer, ending == ""

    return draw_phrase(rng, make, held_out)


def identity(rng, held_out):
    def make(rng):
        questions, answer = rng.choices(P.IDENTITY, weights=[4, 4, 3, 1.5, 1, 1])[0]
        prefix = rng.choice(P.IDENTITY_PREFIX)
        text = prefix + rng.choice(questions)
        return text[0].upper() + text[1:] + rng.choice("?..?"[: 3 if prefix else 1]), answer, prefix == ""

    return draw_phrase(rng, make, held_out)


def decline(rng, held_out):
    return draw_phrase(rng, lambda r: (offtopic.request(r), P.DECLINE, False), held_out)


# Shares of the turns. "numbers" is for the first part of training, until sums come right;
# "words" then gives most to what is learned last, and is what held-out chats are made with.
MIXTURES = {
    "numbers": {
        add: 20, subtract: 20, repeat: 12, reverse: 20, count: 16, greet: 4, identity: 3, decline: 5,
    },
    "words": {
        add: 7, subtract: 7, repeat: 18, reverse: 60, count: 20, greet: 5, identity: 3, decline: 5,
    },
}


def any_turn(rng, held_out=False, mixture="words"):
    weights = MIXTURES[mixture]
    return rng.choices(list(weights), weights=weights.values())[0](rng, held_out)
