"""The usual Python front end: FastAPI on uvicorn, with the same events as Garrick's; for scripts/bench-frontend.

A task of its own makes a token for every stream in turn, as a lane's step does, and puts it into the stream's queue.
(A thread that does it costs more: each token would cross into the loop.) STEP_US spaces the turns.
"""

import asyncio
import os
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

STEP_S = int(os.environ.get("STEP_US", "0")) / 1e6
QUEUE = 64
HEAD = (
    '{"id":"chatcmpl-01a1fde1b90d775992d2c8569b2fa7ca","object":"chat.completion.chunk","created":1795260791,'
    '"model":"fake","system_fingerprint":"garrick-0.1.0-fake","choices":[{"index":0,"delta":{'
)


class ChatRequest(BaseModel):
    model: str
    messages: list[dict]
    max_tokens: int = 16
    stream: bool = True


streams: set[asyncio.Queue] = set()
arrived = asyncio.Event()


async def feed():
    loop = asyncio.get_running_loop()
    token = 0
    while True:
        if not streams:
            arrived.clear()
            await arrived.wait()
        began = loop.time()
        for queue in list(streams):
            token = (token * 7919 + 11) % 767
            if queue in streams:
                await queue.put(256 + token)
        await asyncio.sleep(max(0.0, STEP_S - (loop.time() - began)))


@asynccontextmanager
async def lifespan(_app):
    task = asyncio.create_task(feed())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


def event(number, delta, finish):
    return f'id: {number}\ndata: {HEAD}{delta}}},"logprobs":null,"finish_reason":{finish}}}]}}\n\n'


async def events(max_tokens):
    queue = asyncio.Queue(QUEUE)
    streams.add(queue)
    arrived.set()
    try:
        yield event(0, '"role":"assistant","content":""', "null")
        for number in range(1, max_tokens + 1):
            token = await queue.get()
            yield event(number, f'"content":" w{token}"', "null")
        yield event(max_tokens + 1, "", '"length"')
        yield f"id: {max_tokens + 2}\ndata: [DONE]\n\n"
    finally:
        streams.discard(queue)
        # The feeder may be waiting for room in it.
        while not queue.empty():
            queue.get_nowait()


@app.post("/v1/chat/completions")
async def chat(request: ChatRequest):
    return StreamingResponse(events(request.max_tokens), media_type="text/event-stream")
