"""How models are written in the settings."""

from __future__ import annotations

import pytest

from shared.model_specs import parse_models
from shared.settings import Settings
from tuwen.errors import ConfigurationError
from tuwen.jobs import Kind


@pytest.mark.parametrize(
    ("text", "name", "engine", "place", "revision", "options"),
    [
        ("builtin", "builtin", "builtin", "", None, {}),
        ("import:a.b:C", "import:a.b:C", "import", "a.b:C", None, {}),
        ("mine=import:a.b:C", "mine", "import", "a.b:C", None, {}),
        ("diffusers:owner/xl@0a1", "owner/xl", "diffusers", "owner/xl", "0a1", {}),
        ("clip:/models/vit large", "vit large", "clip", "/models/vit large", None, {}),
        ("transformers:./m?prompt=a photo of, say", "m", "transformers", "./m", None, {"prompt": "a photo of, say"}),
        ("diffusers:a/b?steps=4&size=512x512", "a/b", "diffusers", "a/b", None, {"steps": "4", "size": "512x512"}),
        ("transformers:a/b?prompt=1%262%2C 3", "a/b", "transformers", "a/b", None, {"prompt": "1&2, 3"}),
    ],
)
def test_a_model_is_named_in_one_line(
    text: str, name: str, engine: str, place: str, revision: str | None, options: dict[str, str]
) -> None:
    [spec] = parse_models(text)
    assert (spec.name, spec.engine, spec.place, spec.revision) == (name, engine, place, revision)
    assert spec.options == options
    assert spec.text == text


def test_several_models_of_a_kind_are_a_list_and_the_first_is_the_default() -> None:
    settings = Settings(generate="xl=diffusers:a/b@1?prompt=a, b, builtin,diffusers:./turbo,fast")
    assert [spec.name for spec in settings.models_for(Kind.GENERATE)] == ["xl", "builtin", "turbo,fast"]
    assert settings.model_for(Kind.GENERATE) == "xl"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no model"),
        ("clap:a/b", "names no model"),
        ("diffusers:", "names no model"),
        ("import:module", "names no model"),
        ("diffusers:a/b?fast", "'fast' is not an option"),
        ("builtin,builtin", "two models are called builtin"),
        ("clip:/x/vit,clip:/y/vit", "two models are called vit"),
    ],
)
def test_what_names_no_model_is_refused_with_the_variable(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_models(text)
    if text:  # an empty variable is none
        with pytest.raises(ConfigurationError, match=f"TUWEN_MATCH: .*{said}"):
            Settings(match=text)
