"""The seeded generator of chats: endless training chats, and held-out items to measure by.

    python generate.py --show 20                 # some training chats
    python generate.py --held-out 40 --json      # 40 items per skill as JSON lines
"""

import argparse
import json
import random

import skills
from phrases import SYSTEM

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SKILLS = ("add", "subtract", "repeat", "reverse", "count", "memory", "greet", "identity", "decline")
DRILLS = {"numbers": 0.35, "words": 0.08}


def say(role, content):
    return {"role": role, "content": content}


def system(rng):
    """A system message for one chat in four; it never changes what is right to answer."""
    return [say("system", rng.choice(SYSTEM))] if rng.random() < 0.25 else []


class Chat:
    """A growing conversation that knows the name its user has given, if any."""

    def __init__(self, rng, held_out=False, mixture="words"):
        self.rng, self.held_out, self.mixture, self.name = rng, held_out, mixture, None
        self.messages = system(rng)

    def add(self, request, answer):
        self.messages += [say("user", request), say("assistant", answer)]

    def introduce(self):
        request, answer, self.name = skills.introduce(self.rng, self.held_out, self.name)
        self.add(request, answer)

    def ask_name(self):
        self.add(*skills.ask_name(self.rng, self.name))

    def turn(self):
        kind = self.rng.random()
        if kind < 0.07:
            self.introduce()
        elif kind < (0.22 if self.name else 0.08):
            self.ask_name()
        else:
            self.add(*skills.any_turn(self.rng, self.held_out, self.mixture))


def drill(rng):
    """A few sums in a row: the short chats that arithmetic is mostly learned from."""
    chat = Chat(rng)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        chat.add(*rng.choice((skills.add, skills.subtract))(rng, False))
    return chat.messages


def training_chat(rng, long=False, mixture="words"):
    if not long and rng.random() < DRILLS[mixture]:
        return drill(rng)
    chat = Chat(rng, mixture=mixture)
    if rng.random() < 0.12:
        chat.introduce()
    turns = rng.randint(4, 16) if long else rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 4, 6))
    for _ in range(turns):
        chat.turn()
    return chat.messages


def held_out_item(rng, skill):
    """One measured item: the last answer of a chat, whose material training never sees.

    Half are the first turn of a chat, half come after up to three other turns.
    """
    chat = Chat(rng, held_out=True)
    if skill == "memory":
        chat.introduce()
        for _ in range(rng.randint(0, 3)):
            chat.add(*skills.any_turn(rng, True))
        chat.ask_name()
    else:
        for _ in range(rng.choice((0, 0, 0, 1, 2, 3))):
            chat.turn()
        chat.add(*getattr(skills, skill)(rng, True))
    *messages, answer = chat.messages
    return {"skill": skill, "messages": messages, "expected": answer["content"]}


def held_out_items(number, seed=1, only=SKILLS):
    return [
        held_out_item(random.Random(f"{seed}:{skill}:{index}"), skill)
        for skill in only
        for index in range(number)
    ]


def render(messages, prompt=False):
    """ChatML, exactly as the chat template in tokenizer_config.json writes it."""
    text = "".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages)
    return text + f"{IM_START}assistant\n" if prompt else text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print this many training chats")
    parser.add_argument("--long", action="store_true", help="show long chats")
    parser.add_argument("--held-out", type=int, default=0, help="held-out items per skill")
    parser.add_argument("--json", action="store_true", help="as JSON lines")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.show):
        messages = training_chat(rng, args.long)
        print(json.dumps(messages, ensure_ascii=False) if args.json else render(messages))
    for item in held_out_items(args.held_out, args.seed):
        if args.json:
            print(json.dumps(item, ensure_ascii=False))
        else:
            print(f"[{item['skill']}]\n{render(item['messages'], prompt=True)}{item['expected']}\n")


if __name__ == "__main__":
    main()
