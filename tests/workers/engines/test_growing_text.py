"""A text that is streamed while it grows, and cannot be taken back."""

from __future__ import annotations

import pytest

from api.openai.chat import GrowingText
from tuwen.errors import EngineError
from tuwen.jobs import Part, Progress


def so_far(text: str, index: int = 0) -> Progress:
    return Progress(step=1, steps=9, parts=(Part(index=index, text=text),))


def test_what_was_sent_adds_up_to_the_whole_text() -> None:
    text = GrowingText()
    deltas = [text.take_new(so_far(part)) for part in ("", "a", "a bl", "a bl", "a black cat")]
    assert deltas == ["", "a", " bl", "", "ack cat"]
    assert text.take_rest("a black cat.") == "."


def test_progress_without_a_text_and_of_another_text_is_nothing_to_send() -> None:
    text = GrowingText()
    assert text.take_new(Progress(step=1, steps=9)) == ""
    assert text.take_new(so_far("a cat", index=1)) == ""
    assert text.take_rest("a dog") == "a dog"


def test_a_text_written_anew_goes_on_once_it_has_caught_up() -> None:
    text = GrowingText()
    assert text.take_new(so_far("a black")) == "a black"
    assert text.take_new(so_far("a")) == ""
    assert text.take_new(so_far("a black cat")) == " cat"


def test_a_text_that_begins_otherwise_than_what_was_sent_is_an_error() -> None:
    text = GrowingText()
    text.take_new(so_far("a black"))
    assert text.take_new(so_far("a white cat")) == ""
    with pytest.raises(EngineError, match="job was restarted"):
        text.take_rest("a white cat")
