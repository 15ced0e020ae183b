"""What results and errors may hold: one that PostgreSQL refused would take the jobs settled along with it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tuwen.jobs import DescribeResult, JobError, MatchResult, RecognizedObject

UNSTORABLE = ["a\x00b", "a\ud800b"]


@pytest.mark.parametrize("text", UNSTORABLE)
def test_an_engine_cannot_answer_with_what_cannot_be_stored(text: str) -> None:
    with pytest.raises(ValidationError):
        DescribeResult(text=text, language="en", confidence=1)
    with pytest.raises(ValidationError):
        RecognizedObject(name="cat", name_zh=text, confidence=1)
    with pytest.raises(ValidationError):
        RecognizedObject(name="cat", name_zh="猫", confidence=1, attributes={"colour": text})


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.1])
def test_a_score_is_a_share(score: float) -> None:
    with pytest.raises(ValidationError):
        MatchResult(score=score)


@pytest.mark.parametrize("text", UNSTORABLE)
def test_whatever_an_engine_says_of_its_failure_is_kept(text: str) -> None:
    detail = JobError(code="engine_error", detail=text).detail
    assert "\x00" not in detail
    assert detail.encode()
    assert (detail[0], detail[-1]) == ("a", "b")
