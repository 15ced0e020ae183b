from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.inference.wire import LARGE, Wire, open_wire


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Wire, Wire]]:
    ours, theirs = open_wire(multiprocessing.get_context("spawn"))
    yield ours, theirs
    ours.close()
    theirs.close()


def passed(sender: Wire, message: object, receiver: Wire) -> object:
    with ThreadPoolExecutor(1) as thread:  # the pipe holds less than a message
        sending = thread.submit(sender.send, message)
        received = receiver.receive()
        sending.result()
    return received


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3 * LARGE), st.text(max_size=20)), max_size=4), st.booleans())
def test_messages_arrive_as_they_were_sent(
    ends: tuple[Wire, Wire], parts: list[tuple[int, str]], backwards: bool
) -> None:
    sender, receiver = ends[::-1] if backwards else ends
    message = [(np.arange(size, dtype=np.uint8), text) for size, text in parts]
    received = passed(sender, message, receiver)
    assert isinstance(received, list)
    assert [text for _, text in received] == [text for _, text in message]
    assert all(np.array_equal(ours, theirs) for (ours, _), (theirs, _) in zip(message, received, strict=True))


@pytest.mark.parametrize("size", [LARGE // 2, 2 * LARGE])
def test_what_arrives_belongs_to_the_receiver(ends: tuple[Wire, Wire], size: int) -> None:
    sent = np.zeros(size, np.uint8)
    received = passed(ends[0], sent, ends[1])
    assert isinstance(received, np.ndarray)
    received += 1
    passed(ends[0], np.full(size, 7, np.uint8), ends[1])
    assert received.sum() == size
    assert sent.sum() == 0


def test_arrays_of_any_layout_pass(ends: tuple[Wire, Wire]) -> None:
    base = np.arange(LARGE * 4, dtype=np.uint8).reshape(256, -1)
    for view in (base.T, base[::2, ::2], np.asfortranarray(base)):
        received = passed(ends[0], view, ends[1])
        assert isinstance(received, np.ndarray)
        assert np.array_equal(received, view)


def test_memory_is_held_only_while_a_message_is_under_way(ends: tuple[Wire, Wire]) -> None:
    passed(ends[0], np.zeros(8 * LARGE, np.uint8), ends[1])
    assert os.fstat(ends[0].file).st_size == 0


def test_what_cannot_be_pickled_leaves_the_wire_usable(ends: tuple[Wire, Wire]) -> None:
    with pytest.raises(Exception, match="lambda"):
        ends[0].send([np.zeros(2 * LARGE, np.uint8), lambda: 0])
    assert passed(ends[0], "next", ends[1]) == "next"


def test_the_end_of_the_wire_is_noticed() -> None:
    ours, theirs = open_wire(multiprocessing.get_context("spawn"))
    theirs.close()
    assert ours.poll()
    with pytest.raises(EOFError):
        ours.receive()
    with pytest.raises(OSError, match="pipe"):
        ours.send("anybody?")
    ours.close()


@pytest.mark.parametrize("size", [1 << 20, 0], ids=["send", "receive"])
def test_a_silent_other_end_blocks_no_longer_than_the_bound(size: int) -> None:
    ours, theirs = open_wire(multiprocessing.get_context("spawn"))
    ours.set_timeout(0.05)
    with pytest.raises(BlockingIOError):
        ours.send("x" * size) if size else ours.receive()
    ours.close()
    theirs.close()
