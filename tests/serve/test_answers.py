"""What the server answers is what `model.generate` gives, whole and in pieces."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from .conftest import MAX_TOKENS, NAME, STORY, Served, assistant, eventually, user

MESSAGES = [{"role": "system", "content": "Be brief."}, user(STORY * 3)]


def test_chat_is_what_generate_gives(served: Served) -> None:
    tokens = served.chat_tokens(MESSAGES)
    response = served.chat(MESSAGES)
    assert response.object == "chat.completion"
    assert response.model == NAME
    (choice,) = response.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == served.answer(tokens)
    assert choice.finish_reason == "length"
    usage = response.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(tokens), 12)
    assert usage.total_tokens == len(tokens) + 12
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_lazyllm_says_what_the_report_says(served: Served) -> None:
    said = served.chat(MESSAGES).lazyllm
    served.generate(served.chat_tokens(MESSAGES))
    report = served.engine.lazy.report().to_dict()
    same = ("boundary_layers", "tokens_total", "tokens_per_stage", "tokens_per_layer",
            "revived_per_boundary", "prompt_computed_percent", "kv_bytes", "aux_bytes")  # fmt: skip
    assert {name: said[name] for name in same} == {name: report[name] for name in same}
    assert said["schedule"] == "pruned"
    assert 0 < said["prompt_computed_percent"] < 90
    assert said["ttft_seconds"] > 0
    assert said["tokens_per_second"] > 0
    assert served.chat(MESSAGES, max_tokens=1).lazyllm["tokens_per_second"] is None


def test_completion_of_text_and_of_tokens(served: Served) -> None:
    tokens = served.engine.tokenizer(STORY)["input_ids"]
    expected = served.answer(tokens)
    for prompt in (STORY, [STORY], tokens, [tokens]):
        response = served.complete(prompt)
        assert response.object == "text_completion"
        assert response.choices[0].text == expected
        assert response.usage.prompt_tokens == len(tokens)


@pytest.mark.parametrize("chat", [True, False])
def test_pieces_are_the_whole(served: Served, chat: bool) -> None:
    ask: Any = served.chat if chat else served.complete
    prompt: Any = MESSAGES if chat else STORY
    whole = ask(prompt)
    chunks = list(ask(prompt, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    texts = [(c.choices[0].delta.content if chat else c.choices[0].text) or "" for c in pieces]
    assert "".join(texts) == (whole.choices[0].message.content if chat else whole.choices[0].text)
    assert sum(map(bool, texts)) > 3
    if chat:
        assert pieces[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in pieces)
    assert last.choices == []
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert last.lazyllm["tokens_per_stage"] == whole.lazyllm["tokens_per_stage"]


def test_a_stream_without_usage_ends_with_lazyllm(served: Served) -> None:
    *others, last = served.chat(MESSAGES, stream=True)
    assert last.choices[0].finish_reason == "length"
    assert last.lazyllm["prompt_computed_percent"] > 0
    assert last.usage is None
    assert not any(hasattr(chunk, "lazyllm") for chunk in others)


def test_stop_strings(served: Served) -> None:
    whole = served.chat(MESSAGES).choices[0].message.content
    stop = whole[4:7]
    cut = whole[: whole.index(stop)]
    for given in (stop, ["never to be seen", stop]):
        response = served.chat(MESSAGES, stop=given)
        assert response.choices[0].message.content == cut
        assert response.choices[0].finish_reason == "stop"
        assert response.usage.completion_tokens == len(cut) + len(stop)
        stream = list(served.chat(MESSAGES, stop=given, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == cut
        assert stream[-1].choices[0].finish_reason == "stop"
    # What only looks like the beginning of a stop string is handed out in the end.
    assert served.chat(MESSAGES, stop=whole[-2:] + "\0").choices[0].message.content == whole


def test_the_models_own_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = served.chat(MESSAGES).choices[0].message.content
    end = served.engine.tokenizer(whole[5])["input_ids"][0]
    monkeypatch.setattr(served.engine.lazy.model.generation_config, "eos_token_id", end)
    (choice,) = served.chat(MESSAGES).choices
    assert choice.message.content == whole[: whole.index(whole[5])]
    assert choice.finish_reason == "stop"


def test_sampling(served: Served) -> None:
    def sampled(**options: Any) -> str:
        return served.chat(MESSAGES, **options).choices[0].message.content

    greedy = sampled()
    once = sampled(temperature=1.5, seed=3)
    assert sampled(temperature=1.5, seed=3) == once
    assert len({once, sampled(temperature=1.5, seed=4), greedy}) == 3
    assert sampled(temperature=1.5, top_p=0, seed=3) == greedy  # only the likeliest is left
    # OpenAI's temperature is 1 by default, and another client's seed is not ours.
    assert len({sampled(temperature=None) for _ in range(3)}) > 1


def test_lengths_that_no_request_names(served: Served) -> None:
    assert served.chat(MESSAGES, max_tokens=None).usage.completion_tokens == MAX_TOKENS
    assert served.complete(STORY, max_tokens=None).usage.completion_tokens == 16
    chat = served.chat(MESSAGES, max_tokens=None, max_completion_tokens=3)
    assert chat.usage.completion_tokens == 3


def test_parts_of_text_and_the_role_developer(served: Served) -> None:
    parts = [{"type": "text", "text": STORY}, {"type": "text", "text": STORY * 2}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    expected = served.chat(MESSAGES).choices[0].message.content
    assert served.chat(messages).choices[0].message.content == expected


def test_parameters_that_change_nothing(served: Served) -> None:
    response = served.chat(
        MESSAGES, user="me", metadata={"a": "b"}, n=1, presence_penalty=0, logprobs=False,
        response_format={"type": "text"}, tool_choice="none", store=False,
    )  # fmt: skip
    assert response.choices[0].message.content == served.answer(served.chat_tokens(MESSAGES))


def test_clients_at_once_each_get_their_own(served: Served) -> None:
    prompts = [[user(STORY * 2)], [user("Who sleeps?"), assistant("A dog."), user(STORY)]]
    expected = [served.answer(served.chat_tokens(prompt)) for prompt in prompts]

    def ask(number: int) -> str:
        chunks = served.chat(prompts[number % 2], stream=number > 1)
        if number <= 1:
            return chunks.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    for numbers in ((0, 1), (2, 3), (0, 3)):
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(ask, numbers)) == expected


def test_models_and_health(served: Served) -> None:
    models = served.client().models
    assert [model.id for model in models.list()] == [NAME]
    assert models.retrieve(NAME).id == NAME
    served.chat(MESSAGES)
    assert eventually(lambda: httpx.get(f"{served.url}/health").json()["requests"] == 0)
    health = httpx.get(f"{served.url}/health").json()
    assert health["status"] == "ok"
    assert health["cache_bytes"] == served.engine.caches.nbytes > 0


def test_a_line_of_log_for_each_request(served: Served) -> None:
    served.chat(MESSAGES)
    (line,) = served.log
    tokens = len(served.chat_tokens(MESSAGES))
    for words in (f"prompt {tokens} tokens", "cached 0", "computed", "12 new", "tokens/s"):
        assert words in line
