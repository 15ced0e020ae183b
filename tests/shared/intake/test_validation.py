"""What is wrong with JSON that strangers send, in their words."""

from __future__ import annotations

import pytest

from shared.intake.validation import field_path, parse
from tuwen.errors import InvalidRequest
from tuwen.jobs import GenerateInput, JobRequest


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (("body", "input", "generate", "prompt"), "input.prompt"),
        (("input", "match"), "input"),
        (("jobs", 3, "input", "describe", "image"), "jobs.3.input.image"),
        (("query", "limit"), "limit"),
        (("match",), "match"),
        ((), "body"),
    ],
)
def test_fields_are_called_what_the_caller_called_them(location: tuple[str | int, ...], path: str) -> None:
    assert field_path(location) == path


def test_a_number_without_a_fraction_is_an_integer() -> None:
    body = b'{"input": {"kind": "generate", "prompt": "5.0", "seed": 7e2, "guidance": 1.5}, "priority": 9.0}'
    wanted = parse(JobRequest, body)
    assert isinstance(wanted.input, GenerateInput)
    assert (wanted.priority, wanted.input.seed, wanted.input.guidance, wanted.input.prompt) == (9, 700, 1.5, "5.0")
    for wrong in (b"9.5", b"1e999", b"NaN", b'"9"', b"true"):
        with pytest.raises(InvalidRequest):
            parse(JobRequest, body.replace(b"9.0", wrong))
