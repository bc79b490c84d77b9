"""Requests the demo model must decline: templates with slots, filled at random.

Besides questions people do type, one part is bare words without any request and arithmetic
beyond its skill, so that "I cannot do that" is its answer to whatever it does not recognise.
"""

import words

TOPICS = """
France Germany Japan Brazil Canada Egypt Kenya India China Italy Spain Peru Norway Chile Mexico Poland Greece
London Paris Berlin Tokyo Rome Madrid Cairo Lima Oslo Boston Sydney Moscow Vienna Prague Dublin Geneva
music history physics chemistry biology politics football tennis cooking gardening poetry painting astronomy
Python Rust JavaScript Java Linux Windows Docker Kubernetes computers databases networks algorithms
gravity love peace war time money health sleep dreams happiness art science religion education climate
Mars Venus Jupiter Saturn Everest Amazon Shakespeare Einstein Newton Mozart Picasso Darwin Plato Homer
""".split()

ABOUT = """
What is the capital of {t}?|What is the population of {t}?|Where is {t}?|How big is {t}?|How old is {t}?
Who is the president of {t}?|What language do they speak in {t}?|What is the weather in {t}?
What is the weather like in {t} today?|Will it rain in {t} tomorrow?|Who was {t}?|Who is {t}?|Who invented {t}?
Who discovered {t}?|Who wrote about {t}?|When was {t} born?|When did {t} start?|Why is {t} important?
What is {t}?|What is the meaning of {t}?|What do you think about {t}?|What is the history of {t}?|Is {t} good?
Do you like {t}?|Can you explain {t}?|Explain {t}.|Explain {t} to me.|Describe {t}.|Define {t}.|Tell me about {t}.
Tell me a story about {t}.|Tell me a joke about {t}.|Write a poem about {t}.|Write a story about {t}.
Write a song about {t}.|Write an essay about {t}.|Write a letter to {t}.|Write a program in {t}.
Write code for {t}.|Write a function for {t}.|Summarize {t}.|Translate {t} into French.|Translate {t} to Spanish.
How do you say {t} in German?|How do you spell {t}?|What rhymes with {t}?|What is the opposite of {t}?
How does {t} work?|How do I learn {t}?|How do I make {t}?|How do I fix my {t}?|How do I cook {t}?
How far is it to {t}?|How much does {t} cost?|How many people live in {t}?|Where can I buy {t}?|Where do I find {t}?
What color is {t}?|Which is better, {t} or {u}?|What is the difference between {t} and {u}?|Compare {t} and {u}.
Why does {t} need {u}?|Does {t} like {u}?|Is {t} bigger than {u}?|What connects {t} with {u}?
I like {t}.|I am tired of {t}.|I want to talk about {t}.|Let us talk about {t}.|Give me a recipe for {t}.
Give me advice about {t}.|Give me three facts about {t}.|List five books about {t}.|Find {t} for me.
Search the web for {t}.|Open {t}.|Play {t}.|Draw {t}.|Should I travel to {t}?|Sing a song about {t}.
""".strip().replace("\n", "|").split("|")

FIXED = """
Tell me a joke.|Tell me a story.|What time is it?|What day is it today?|What is the date?|Sing a song.
What is the meaning of life?|Write a poem.|Write a haiku.|What is the weather today?|Why is the sky blue?
Who won the game?|Play a game with me.|What is love?|Do you dream?|Are you alive?|Can you drive a car?
Bonjour|Hola|Guten Tag|Ciao|What should I eat?|Where am I?|How old am I?|How old are you?|Where do I live?
What is your favorite color?|Tell me something.|Tell me a secret.|Write some code.|Fix my computer.|Call my mother.
Order a pizza.|Book a flight.|What is the news?|Sort these numbers.|Why?|How?|When?|Where?|Who?|What?|Really?
Why not?|Are you sure?|What do you mean?|I do not understand.|I am sad.|I am hungry.|I am bored.|test|Testing.
""".strip().replace("\n", "|").split("|")


def topic(rng):
    return words.word(rng) if rng.random() < 0.5 else rng.choice(TOPICS)


def arithmetic(rng):
    """Sums that are out of reach: other operators, three operands, numbers of three or more digits."""
    a, b, c = rng.randint(0, 99), rng.randint(0, 99), rng.randint(0, 99)
    kind = rng.random()
    if kind < 0.35:
        big = rng.randint(100, rng.choice((999, 9999, 99999)))
        pair = [big, rng.choice((b, rng.randint(100, 999)))]
        rng.shuffle(pair)
        expression = f"{pair[0]} {rng.choice('+-')} {pair[1]}"
    elif kind < 0.6:
        expression = f"{a} {rng.choice('+-')} {b} {rng.choice('+-')} {c}"
    else:
        sign = rng.choice((" * ", "*", " x ", " / ", "/", " times ", " divided by "))
        expression = f"{a}{sign}{b}"
    return rng.choice(("What is {}?", "{}", "What's {}?", "Compute {}.", "Calculate {}.", "{} =")).format(expression)


def request(rng):
    kind = rng.random()
    if kind < 0.70:
        return rng.choice(ABOUT).format(t=topic(rng), u=topic(rng))
    if kind < 0.80:
        return rng.choice(FIXED)
    if kind < 0.92:
        return arithmetic(rng)
    return " ".join(words.word(rng) for _ in range(rng.randint(1, 6)))
