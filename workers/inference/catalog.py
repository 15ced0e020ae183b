"""The catalog of engines: the kinds that each can do, and its class. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model_specs import ModelSpec, parse_models
from tuwen.errors import EngineStartFailed
from tuwen.jobs import Kind
from workers.inference.residents import Key

ENGINES = {
    ("builtin", Kind.GENERATE): "BuiltinGenerator",
    ("builtin", Kind.DESCRIBE): "BuiltinDescriber",
    ("builtin", Kind.RECOGNIZE): "BuiltinRecognizer",
    ("builtin", Kind.MATCH): "BuiltinMatcher",
    ("diffusers", Kind.GENERATE): "DiffusersGenerator",
    ("transformers", Kind.DESCRIBE): "TransformersDescriber",
    ("clip", Kind.RECOGNIZE): "ClipRecognizer",
    ("clip", Kind.MATCH): "ClipMatcher",
}
"""Classes in the modules `workers.engines.<engine>`, imported by name: only the engine process has torch."""


def engine_path(kind: Kind, spec: ModelSpec) -> tuple[str, str]:
    """Return module and class of the model's engine.

    Raises:
        EngineStartFailed: the engine does not do what `kind` asks for.
    """
    if spec.engine == "import":
        module, _, name = spec.place.partition(":")
        return module, name
    if (spec.engine, kind) not in ENGINES:
        able = [other.value for engine, other in ENGINES if engine == spec.engine]
        raise EngineStartFailed(
            f"{kind.value} engine {spec.text!r}: {spec.engine} can {' and '.join(able)}, and cannot {kind.value}"
        )
    return f"workers.engines.{spec.engine}", ENGINES[spec.engine, kind]


def parse_model_specs(specs: Mapping[Kind, str]) -> dict[Key, ModelSpec]:
    """Parse every model that the settings name, those of each kind in their order.

    Raises:
        EngineStartFailed: a setting cannot be parsed, or names an engine that cannot do what its kind asks for.
    """
    found: dict[Key, ModelSpec] = {}
    for kind, text in specs.items():
        try:
            named = parse_models(text)
        except ValueError as error:
            raise EngineStartFailed(f"{kind.value} engine {text!r}: {error}") from error
        for spec in named:
            engine_path(kind, spec)
            found[kind, spec.name] = spec
    return found


def is_pinned(spec: ModelSpec) -> bool:
    """Whether the model is never evicted: as its option says, otherwise if it is compiled, which takes minutes."""
    return spec.options.get("pinned", "1" if "compile" in spec.options else "0") == "1"
