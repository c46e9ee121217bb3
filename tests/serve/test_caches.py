"""Turns of a chat go on from the cache of the turn before, within a budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lazyllm_ext.serve import PrefixCaches

from .conftest import STORY, Served, assistant, user


def said(response: Any) -> str:
    return response.choices[0].message.content


def cached(response: Any) -> int:
    return response.usage.prompt_tokens_details.cached_tokens


def turns(served: Served, count: int) -> list[Any]:
    """A chat of so many turns; the responses, and the messages of the last one."""
    messages, responses = [user(STORY * 3)], []
    for turn in range(count):
        responses.append(served.chat(messages))
        messages += [assistant(said(responses[-1])), user(f"And then, number {turn}?")]
    return responses


def test_a_further_turn_is_generate_with_the_continued_cache(served: Served) -> None:
    responses = turns(served, 3)
    cache, messages = served.engine.lazy.new_cache(), [user(STORY * 3)]
    for turn, response in enumerate(responses):
        tokens, held = served.chat_tokens(messages), cache.get_seq_length()
        assert cached(response) == held
        assert said(response) == served.answer(tokens, cache)
        assert response.lazyllm["tokens_per_stage"] == cache.report().tokens_per_stage
        messages += [assistant(said(response)), user(f"And then, number {turn}?")]
    assert cached(responses[2]) > cached(responses[1]) > len(STORY) * 3
    assert len(served.engine.caches) == 1  # one conversation, one cache


def test_a_further_turn_is_what_no_cache_gives_where_nothing_is_dropped(dense: Served) -> None:
    messages = [user(STORY * 3)]
    for turn, response in enumerate(turns(dense, 3)):
        assert said(response) == dense.answer(dense.chat_tokens(messages))
        assert (cached(response) > 0) == (turn > 0)
        messages += [assistant(said(response)), user(f"And then, number {turn}?")]


@pytest.mark.parametrize("kept", [0, 5])
def test_another_answer_in_the_history_is_cropped(served: Served, dense: Served, kept: int) -> None:
    for server in (served, dense):
        first = [user(STORY * 3)]
        (response,) = turns(server, 1)
        edited = [*first, assistant(said(response)[:kept] + "\nedited\n"), user("And then?")]
        held = len(server.chat_tokens(first)) + kept
        cache = server.engine.lazy.new_cache()
        server.generate(server.chat_tokens(first), cache)
        cache.crop(held - cache.get_seq_length())
        again = server.chat(edited)
        assert cached(again) == held
        assert said(again) == server.answer(server.chat_tokens(edited), cache)
        if server is dense:
            assert said(again) == server.answer(server.chat_tokens(edited))


def test_an_edited_prompt_is_read_anew(served: Served) -> None:
    (response,) = turns(served, 1)
    edited = [user(STORY * 2 + STORY.upper()), assistant(said(response)), user("And then?")]
    again = served.chat(edited)
    assert cached(again) == 0
    assert said(again) == served.answer(served.chat_tokens(edited))
    assert len(served.engine.caches) == 2


def test_the_same_request_twice_gives_the_same(served: Served) -> None:
    first, second = served.chat([user(STORY)]), served.chat([user(STORY)])
    assert said(first) == said(second)
    assert cached(second) == 0
    assert len(served.engine.caches) == 1


def test_completions_go_on_too(served: Served) -> None:
    tokens = served.engine.tokenizer(STORY)["input_ids"]
    served.complete(tokens)
    cache = served.engine.lazy.new_cache()
    longer = [*served.generate(tokens, cache).tolist(), *tokens]
    response = served.complete(longer)
    assert cached(response) == len(tokens) + 11  # the last of 12 was not computed
    assert response.choices[0].text == served.answer(longer, cache)


def test_the_least_recently_used_goes_first(served: Served) -> None:
    chats = [[user(f"{letter}: {STORY}")] for letter in "abc"]
    answers = [said(served.chat(chat)) for chat in chats[:1]]
    one = served.engine.caches.nbytes
    served.engine.caches.budget = int(2.5 * one)
    answers += [said(served.chat(chat)) for chat in chats[1:]]
    assert len(served.engine.caches) == 2
    assert served.engine.caches.nbytes <= served.engine.caches.budget

    def go_on(number: int) -> int:
        more = [assistant(answers[number]), user("?")]
        return cached(served.chat([*chats[number], *more]))

    assert go_on(1) > len(STORY)  # now c is the oldest
    assert go_on(0) == 0  # gone; and brings another in
    assert go_on(2) == 0  # which took the place of c


def test_a_cache_larger_than_the_budget_is_not_kept(served: Served) -> None:
    served.chat([user(STORY)])
    small = served.engine.caches.nbytes
    served.engine.caches.budget = int(1.5 * small)
    served.chat([user(STORY * 10)])
    assert served.engine.caches.nbytes == small  # and nothing made room for it


def test_no_budget_no_caches(served: Served) -> None:
    served.engine.caches.budget = 0
    served.engine.caches = PrefixCaches(0)
    assert [cached(response) for response in turns(served, 2)] == [0, 0]
    assert len(served.engine.caches) == 0


def test_the_longest_beginning_wins(served: Served) -> None:
    lazy, store = served.engine.lazy, PrefixCaches(1 << 30)
    for length in (8, 24, 16):
        cache = lazy.new_cache()
        served.generate(list(range(3, 3 + length)), cache, max_new_tokens=1)
        store.put(list(range(3, 3 + length)), length, cache)
    prompt = list(range(3, 3 + 24))
    taken = store.take(prompt)  # a token of the prompt must be new
    assert taken is not None
    assert taken.get_seq_length() == 16
    assert store.take([*prompt, 5]).get_seq_length() == 24
    assert store.take([*prompt, 5]).get_seq_length() == 8
    assert store.take([*prompt, 5]) is None
    assert torch.equal(taken.state.length, torch.tensor([16]))
