"""What the OpenAI Python SDK makes of a running server; sdk.rs starts both."""

import os

import openai
from openai import OpenAI

URL, KEY = os.environ["GARRICK_URL"], os.environ["GARRICK_KEY"]
HELLO = [{"role": "user", "content": "Hello"}]


def client(key=KEY):
    return OpenAI(base_url=URL, api_key=key, max_retries=0, timeout=20)


def chat(**extra):
    return client().chat.completions.create(
        model="default", messages=HELLO, max_tokens=12, seed=3, **extra
    )


def test_chat():
    answer = chat(n=2, logprobs=True, top_logprobs=2)
    assert answer.object == "chat.completion" and answer.model == "fake"
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.message.role == "assistant" and choice.finish_reason == "length"
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(len(token.top_logprobs) == 2 for token in tokens)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (12, 24, 36)
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert answer._request_id.startswith("req_")


def test_chat_stream():
    whole = chat().choices[0].message.content
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_chat_stream_helper():
    with client().chat.completions.stream(model="default", messages=HELLO, max_tokens=4) as stream:
        events = [event.type for event in stream]
        assert "content.delta" in events and "content.done" in events
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "length"


def test_completions():
    def complete(**extra):
        return client().completions.create(model="default", max_tokens=5, seed=3, **extra)

    answer = complete(prompt=["Hi", "Ho"], n=2, logprobs=2)
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(answer.choices[0].logprobs.tokens) == 5
    whole = complete(prompt=[72, 105], echo=True).choices[0].text
    assert whole.startswith("Hi w")
    streamed = complete(prompt="Hi", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole


def test_models():
    models = client().models.list()
    assert [model.id for model in models] == ["fake"]
    assert client().models.retrieve("fake").owned_by == "garrick"


def fails(kind, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, error
        assert error.request_id and error.body["message"], error
        return error
    raise AssertionError(f"no {kind.__name__}")


def test_errors():
    error = fails(openai.AuthenticationError, client("gk_wrong").models.list)
    assert error.code == "invalid_api_key"
    error = fails(openai.NotFoundError, lambda: client().models.retrieve("nope"))
    assert error.code == "model_not_found" and error.param == "model"
    error = fails(openai.BadRequestError, lambda: chat(temperature=3))
    assert error.param == "temperature" and error.type == "invalid_request_error"
    error = fails(openai.BadRequestError, lambda: chat(tools=[{"type": "function"}]))
    assert error.param == "tools"
    limited = client(os.environ["GARRICK_LIMITED_KEY"])
    ask = lambda: limited.completions.create(model="default", prompt="Hi", max_tokens=1)
    ask()
    error = fails(openai.RateLimitError, ask)
    assert error.code == "rate_limit_exceeded" and int(error.response.headers["retry-after"]) >= 1


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print(name, "ok")
