"""Two turns with SmolLM2, where the other tests of real models find it (tests/hf/conftest.py)."""

from __future__ import annotations

from helpers import at_any_length
from hf.conftest import REAL_MODELS

from .conftest import STORY, assistant, load_engine, running, user


def test_two_turns() -> None:
    engine = load_engine(REAL_MODELS["smollm2"], at_any_length("balanced"))
    for served in running(engine):
        first = [user(STORY * 12 + "What does the fox jump over?")]
        response = served.chat(first, max_tokens=40)
        said = response.choices[0].message.content
        cache = engine.lazy.new_cache()
        assert said == served.answer(served.chat_tokens(first), cache, max_new_tokens=40)
        assert response.choices[0].finish_reason == "stop"
        assert response.lazyllm["prompt_computed_percent"] < 80
        second = [*first, assistant(said), user("And who sleeps?")]
        held = cache.get_seq_length()
        chunks = list(served.chat(second, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == held > 200
        assert "".join(
            chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
        ) == served.answer(served.chat_tokens(second), cache)
