"""Closed-loop load on a `/v1/completions` endpoint, from a client that counts every event.

Prompts are random token ids, so their lengths are exact on every server; the end token is ignored, decoding is greedy.
`run` gives decode_tps (tokens a second while all `concurrency` streams are between their first and their last token, so
that no prefill is in it; None under half a second of that), output_tps over the whole run, and in milliseconds ttft and
gap (between two events of a stream).

A shape with a prefix finds it cached where the server caches: the request that warms up begins with it. A `Reuse` asks in
turn for the prefix with a new suffix and for a new suffix alone, one stream: what a cached prefix costs until the first
token.
"""

import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from urllib.parse import urlparse


@dataclass
class Shape:
    """One load. `prefix` tokens of each prompt are the same."""

    seed: int
    concurrency: int
    requests: int
    prompt: int
    output: int = 64
    prefix: int = 0

    def __str__(self):
        shared = f", {self.prefix} shared" if self.prefix else ""
        return f"{self.prompt} in, {self.output} out{shared} @{self.concurrency}"


@dataclass
class Reuse(Shape):
    """Pairs of requests: `prompt` tokens of which `prefix` are cached, and the other `prompt - prefix` alone."""

    def __str__(self):
        return f"{self.prompt - self.prefix} after {self.prefix} cached, and alone"


@dataclass
class Answer:
    began: float
    usage: dict
    events: list = field(default_factory=list)


async def ask(url, body):
    """One streamed completion."""
    head = f"POST {url.path.rstrip('/')}/v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = Answer(time.perf_counter(), {})
    reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=1 << 22)
    try:
        writer.write(head.encode() + body)
        status = (await reader.readline()).split()[1:2]
        if status != [b"200"]:
            raise RuntimeError(f"{status}: {(await reader.read())[-300:]}")
        async for line in reader:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event.get("error"):
                    raise RuntimeError(event["error"])
                answer.usage = event.get("usage") or answer.usage
                if event.get("choices"):
                    answer.events.append(time.perf_counter())
            elif line.startswith(b"data: [DONE]"):
                break
    finally:
        writer.close()
    if not answer.events or not answer.usage:
        raise RuntimeError("the answer has no tokens or no usage")
    return answer


def decode_rate(answers, concurrency):
    """A stream's tokens count as spread evenly over its events: some servers send several at once."""
    marks = []
    for answer in answers:
        times, tokens = answer.events, answer.usage["completion_tokens"]
        marks += [(times[0], 1, 0), (times[-1], -1, 0)]
        marks += [(at, 0, tokens / len(times)) for at in times[1:]]
    active, since, tokens, spent = 0, 0.0, 0.0, 0.0
    for now, change, num in sorted(marks):
        if active == concurrency:
            spent, tokens = spent + now - since, tokens + num
        active, since = active + change, now
    return tokens / spent if spent > 0.5 else None


def spread(seconds):
    ordered = sorted(seconds)
    if not ordered:
        return None
    return {"p50": 1e3 * statistics.median(ordered), "p99": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]}


def random_tokens(shape, vocab):
    rng = random.Random(shape.seed)
    return lambda num: [rng.randrange(100, vocab) for _ in range(num)]


def body_of(model, shape, extra):
    fixed = {"model": model, "max_tokens": shape.output, "temperature": 0, "stream": True, "ignore_eos": True}
    fixed |= {"stream_options": {"include_usage": True}} | extra
    return lambda prompt: json.dumps(fixed | {"prompt": prompt}).encode()


def cached_tokens(answers):
    """Of each prompt, the median; None where the server does not say."""
    said = [(answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens") for answer in answers]
    said = [num for num in said if num is not None]
    return statistics.median(said) if said else None


async def load(base_url, model, shape, vocab, extra):
    url, tokens, body = urlparse(base_url), random_tokens(shape, vocab), body_of(model, shape, extra)
    prefix = tokens(shape.prefix)
    bodies = [body(prefix + tokens(shape.prompt - shape.prefix)) for _ in range(shape.requests)]
    # The first request warms up: beyond the prefix its prompt is another one.
    await ask(url, body(prefix + tokens(shape.prompt - shape.prefix)))
    gate, answers, errors = asyncio.Semaphore(shape.concurrency), [], []

    async def one(body):
        async with gate:
            try:
                answers.append(await ask(url, body))
            except (RuntimeError, OSError, ValueError) as error:
                errors.append(repr(error)[:200])

    began = time.perf_counter()
    await asyncio.gather(*map(one, bodies))
    wall = time.perf_counter() - began
    gaps = [b - a for answer in answers for a, b in zip(answer.events, answer.events[1:])]
    prefill_tps = None
    if shape.concurrency == 1 and not shape.prefix and answers:
        prefill_tps = shape.prompt / statistics.median(a.events[0] - a.began for a in answers)
    return {
        "shape": str(shape),
        "failures": len(errors),
        "first_failure": errors[:1],
        "decode_tps": decode_rate(answers, shape.concurrency),
        "output_tps": sum(answer.usage["completion_tokens"] for answer in answers) / wall,
        "ttft_ms": spread([answer.events[0] - answer.began for answer in answers]),
        "gap_ms": spread(gaps),
        "prefill_tps": prefill_tps,
        "cached_tokens": cached_tokens(answers) if shape.prefix else None,
    }


async def reuse(base_url, model, shape, vocab, extra):
    url, tokens, body = urlparse(base_url), random_tokens(shape, vocab), body_of(model, shape, extra)
    prefix, suffix = tokens(shape.prefix), shape.prompt - shape.prefix
    await ask(url, body(prefix + tokens(suffix)))
    cached, alone, errors = [], [], []
    for _ in range(shape.requests):
        for answers, prompt in ((cached, prefix + tokens(suffix)), (alone, tokens(suffix))):
            try:
                answers.append(await ask(url, body(prompt)))
            except (RuntimeError, OSError, ValueError) as error:
                errors.append(repr(error)[:200])
    first = [spread([answer.events[0] - answer.began for answer in answers]) for answers in (cached, alone)]
    return {
        "shape": str(shape),
        "failures": len(errors),
        "first_failure": errors[:1],
        "ttft_ms": first[0],
        "alone_ttft_ms": first[1],
        "reuse_ratio": first[0]["p50"] / first[1]["p50"] if all(first) else None,
        "cached_tokens": cached_tokens(cached),
    }


def run(base_url, model, shape, vocab, extra):
    return asyncio.run((reuse if isinstance(shape, Reuse) else load)(base_url, model, shape, vocab, extra))
