"""Chats as packed rows of token ids, and chats as answers to check."""

import random

import torch

from generate import END_OF_TEXT, IM_END, IM_START, render, training_chat

IGNORE = -100


class Encoder:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.start, self.end, self.pad = map(tokenizer.token_to_id, (IM_START, IM_END, END_OF_TEXT))
        self.answer_opening = [self.start, *tokenizer.encode("assistant\n").ids]

    def prompt(self, messages):
        return self.tokenizer.encode(render(messages, prompt=True)).ids

    def labelled(self, text):
        """Ids of a rendered chat; per position the next id, if an answer or its end is due there; weights.

        A token weighs one over the root of its answer's length: else the long answers would
        drown the few digits that arithmetic and counting are learned by.
        """
        ids = self.tokenizer.encode(text).ids
        labels, weights = [IGNORE] * len(ids), [0.0] * len(ids)
        opening, first = self.answer_opening, None
        for at, token in enumerate(ids):
            if first is not None:
                labels[at - 1] = token
                if token == self.end:
                    weights[first:at] = [(at - first) ** -0.5] * (at - first)
                    first = None
            elif token == opening[-1] and ids[at - len(opening) + 1 : at + 1] == opening:
                first = at
        return ids, labels, weights


class Rows:
    """An endless, seeded supply of batches of packed rows.

    Every chat in a row has positions from 0 and sees itself alone, exactly as when it is served.
    """

    def __init__(self, encoder, seed, length, long, mixture):
        self.encoder, self.length, self.long, self.mixture = encoder, length, long, mixture
        self.rng = random.Random(seed)
        self.waiting = []

    def chats(self):
        while True:
            messages = training_chat(self.rng, self.long, self.mixture)
            chat = self.encoder.labelled(render(messages))
            if len(chat[0]) <= self.length:
                return chat

    def row(self):
        ids, labels, weights, positions, chat = [], [], [], [], []
        number = 0
        while True:
            following = self.waiting.pop() if self.waiting else self.chats()
            next_ids, next_labels, next_weights = following
            if len(ids) + len(next_ids) > self.length:
                self.waiting.append(following)
                break
            ids += next_ids
            labels += next_labels
            weights += next_weights
            positions += range(len(next_ids))
            chat += [number] * len(next_ids)
            number += 1
        rest = self.length - len(ids)
        return (
            ids + [self.encoder.pad] * rest,
            labels + [IGNORE] * rest,
            weights + [0.0] * rest,
            positions + list(range(rest)),
            chat + [number] * rest,
        )

    def batch(self, rows):
        parts = zip(*(self.row() for _ in range(rows)))
        ids, labels, weights, positions, chat = (torch.tensor(part) for part in parts)
        same = chat[:, None, :, None] == chat[:, None, None, :]
        causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        return ids, labels, weights, positions, same & causal


@torch.no_grad()
def accuracy(model, encoder, items, rows=64):
    """Share of items per skill whose right answer is, token by token, the likeliest: one pass each.

    Greedy decoding then gives that answer. It can also reach the same text by other tokens,
    which is not counted here, so this is a lower bound of what evaluate.py measures.
    """
    encoded = []
    for item in items:
        answer = {"role": "assistant", "content": item["expected"]}
        text = render([*item["messages"], answer])
        ids, labels, _ = encoder.labelled(text)
        if len(ids) <= model.config.max_position_embeddings:
            opening = len(encoder.prompt(item["messages"]))
            labels[: opening - 1] = [IGNORE] * (opening - 1)
            encoded.append((item["skill"], ids, labels))
    encoded.sort(key=lambda entry: len(entry[1]))
    right = {}
    for at in range(0, len(encoded), rows):
        group = encoded[at : at + rows]
        longest = len(group[-1][1])
        # Padding on the right is never seen by what comes before it.
        ids = torch.tensor([i + [encoder.pad] * (longest - len(i)) for _, i, _ in group])
        labels = torch.tensor([l + [IGNORE] * (longest - len(l)) for _, _, l in group])
        positions = torch.arange(longest).expand(len(group), -1)
        mask = torch.ones(longest, longest, dtype=torch.bool).tril()[None, None]
        guess = model.logits(model.hidden(ids, positions, mask)).argmax(-1)
        good = ((guess == labels) | (labels == IGNORE)).all(dim=1)
        for (skill, _, _), ok in zip(group, good.tolist()):
            right.setdefault(skill, []).append(ok)
    return {skill: sum(oks) / len(oks) for skill, oks in right.items()}
