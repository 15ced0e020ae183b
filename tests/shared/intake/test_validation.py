"""What is wrong with JSON that strangers send, in their words."""

from __future__ import annotations

import pytest

from shared.intake.validation import field_path


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
