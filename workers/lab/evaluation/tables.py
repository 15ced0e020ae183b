"""A report as tables: headings and rows of text, for the terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from workers.lab.evaluation.prompts import BESIDE, COLUMNS, GENEVAL

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a report."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def as_text(figure: Mapping[str, float] | float | None) -> str:
    """A figure as the tables show it, such as "0.957 (0.941–0.972)"; a dash where there is none."""
    if figure is None:
        return "–"
    if isinstance(figure, Mapping):
        return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"
    return f"{figure:.3f}"


def _row(name: str, figures: Iterable[Mapping[str, float] | float | None]) -> list[str]:
    return [name, *map(as_text, figures)]


def _pick(found: Report, keys: Iterable[str]) -> list[Any]:
    """The figures with these names, in their order."""
    return [found[key] for key in keys]


def tables(report: Report) -> Iterator[Table]:
    """All tables of the sections that a report has."""
    yield _goals(report)
    for name, tell in _SECTIONS.items():
        if name in report:
            yield from tell(report[name])


def _goals(report: Report) -> Table:
    def number(goal: Mapping[str, Any], name: str) -> str:
        return f"{goal[name]:.0f} {goal['unit']}" if goal["unit"] else f"{goal[name]:.3g}"

    def measured(goal: Mapping[str, Any]) -> str:
        if goal["low"] is None:
            return f"{goal['measured']:.1f} {goal['unit']}" if goal["unit"] else as_text(goal["measured"])
        return as_text({"value": goal["measured"], "low": goal["low"], "high": goal["high"]})

    rows = [(g["what"], number(g, "least"), number(g, "aim"), measured(g), g["verdict"]) for g in report["goals"]]
    return Table("Goals", ("what", "at least", "aim", "measured", ""), rows)


def _judge(section: Report) -> Iterator[Table]:
    names = {
        "ceiling": "true renders accepted",
        "edited": "one wrong statement accepted",
        "shuffled": "another prompt's render accepted",
        "shuffled_true": "of these, true by chance",
    }
    for column in COLUMNS:
        found = section[column]
        rows = [_row(tag, _pick(found["tags"][tag], names)) for tag in GENEVAL]
        rows.append(_row("mean of the six", _pick(found["mean"], names)))
        rows += [_row(tag, _pick(found["tags"][tag], names)) for tag in BESIDE]
        yield Table(f"Judge, {column} combinations", ("", *names.values()), rows)


def _generation(section: Report) -> Iterator[Table]:
    names = {"at_1": "@1", "best": "best of 4 by the matcher", "oracle": "oracle @4"}
    for column in COLUMNS:
        found = section[column]
        rows = [_row(tag, _pick(found["tags"][tag], names)) for tag in GENEVAL]
        rows.append(_row("mean of the six", _pick(found["mean"], names)))
        rows += [_row(tag, _pick(found["beside"][tag], names)) for tag in BESIDE]
        yield Table(
            f"Generation, {column} combinations",
            ("", *names.values()),
            rows,
            "GenEval protocol, closed domain. action, scene and atoms are not part of the mean.",
        )
    yield from _soft_tifa(section)
    yield _nothing_wrong(section)


def _soft_tifa(section: Report) -> Iterator[Table]:
    kinds = ("arithmetic", "geometric")
    rows = [_row(column, _pick(section[column]["soft_tifa"], kinds)) for column in COLUMNS]
    yield Table(
        "Soft-TIFA, prompts of 3 to 8 atoms",
        ("", "mean over atoms", "geometric, by prompt"),
        rows,
    )
    by_kind = [section[column]["soft_tifa"]["by_kind"] for column in COLUMNS]
    rows = [_row(kind, [found.get(kind) for found in by_kind]) for kind in by_kind[0]]
    yield Table("Soft-TIFA by kind of atom", ("", *COLUMNS), rows)


def _nothing_wrong(section: Report) -> Table:
    by_atoms = [section[column]["by_atoms"] for column in COLUMNS]
    numbers = sorted(set().union(*by_atoms), key=int)
    rows = [_row(f"{number} atoms", [found.get(number) for found in by_atoms]) for number in numbers]
    by_language = [section[column]["mean_by_language_at_1"] for column in COLUMNS]
    for language in ("zh", "en"):
        figures = [found[language] for found in by_language]
        rows.append(_row(f"six tags, {language}", figures))
    return Table("Images with nothing wrong, by number of atoms and by language", ("", *COLUMNS), rows)


def _by_hand(section: Report) -> Iterator[Table]:
    names = {"development": "development", "held_out": "held out"}

    def counted(figure: Mapping[str, float] | None) -> str:
        return f"{as_text(figure)} of {figure['count']}" if figure else "–"

    rows = [
        [f"{kind}, {names[name]}", *(counted(found[kind].get(o)) for o in ("honoured", "said", "silently wrong"))]
        for kind in ("feasible", "infeasible")
        for name, found in section.items()
    ]
    rows += [
        [f"{what}, {names[name]}", counted(figure), "", ""]
        for name, found in section.items()
        for what, figure in (
            ("single pictures that are right", found["pictures"]),
            ("true renders accepted in all of 8", found["ceiling"]["prompts"]),
        )
    ]
    yield Table(
        "Prompts written by hand",
        ("", "honoured in all of 8 seeds", "said", "silently wrong"),
        rows,
        "Said: refused, or with warnings or unknown words. Nothing but what was asked for may be seen.",
    )


def _recognition(section: Report) -> Iterator[Table]:
    heads = ("", "accuracy", "macro precision", "macro recall", "macro-F1")
    for column in COLUMNS:
        found = section[column]
        keys = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
        rows = [_row(name, _pick(each, keys)) for name, each in found["attributes"].items()]
        rows.append(["mean", "", "", "", as_text(found["macro_f1"])])
        note = (
            f"Whole scene right: {as_text(found['exact'])}; calibration error of its confidence "
            f"{as_text(found['calibration_error'])}. An object that is missed takes its attributes with it."
        )
        yield Table(f"Recognition, {column} combinations", heads, rows, note)


def _folds(section: Report) -> Iterator[Table]:
    rows = [[name, f"{value:.3f} ± {section['spread'][name]:.3f}"] for name, value in section["mean"].items()]
    yield Table(f"Cross-validation in {len(section['folds'])} folds", ("", "mean ± spread"), rows)


def _description(section: Report) -> Iterator[Table]:
    heads = (
        "",
        "precision",
        "recall",
        "F1",
        "captions without a mistake",
        "CHAIR-i",
        "CHAIR-s",
        "CIDEr-D",
        "BLEU-4",
    )
    for column in COLUMNS:
        keys = ("precision", "recall", "f1", "exact", "chair_i", "chair_s", "cider_d", "bleu_4")
        rows = []
        for language, styles in section[column].items():
            rows += [_row(f"{language}, {style}", _pick(found, keys)) for style, found in styles.items()]
        yield Table(
            f"Captions, {column} combinations",
            heads,
            rows,
            "CIDEr-D and BLEU-4 are secondary: set phrases inflate both.",
        )
        detailed = {language: styles["detailed"]["kinds"] for language, styles in section[column].items()}
        rows = []
        for kind in next(iter(detailed.values())):
            for language, kinds in detailed.items():
                rows.append(_row(f"{kind}, {language}", _pick(kinds[kind], ("precision", "recall", "f1"))))
        yield Table(
            f"Detailed captions by kind of fact, {column}",
            ("", "precision", "recall", "F1"),
            rows,
        )


def _pope(section: Report) -> Iterator[Table]:
    rows = []
    for column in COLUMNS:
        for language, samplings in section[column].items():
            for sampling, answers in samplings.items():
                for who, found in answers.items():
                    name = f"{who}, {sampling}, {language}, {column}"
                    rows.append(_row(name, _pick(found, ("accuracy", "f1", "yes_ratio"))))
    yield Table(
        "POPE: is there such an object?",
        ("", "accuracy", "F1", "yes ratio"),
        rows,
        "Half of the answers should be yes.",
    )


def _pairs(section: Report) -> Iterator[Table]:
    names = {
        "own caption first of 100": ("r_precision", "text"),
        "own picture first of 100": ("r_precision", "image"),
        "true caption first of ten, nine with one edit": ("one_edit", "first_of_ten"),
        "true caption before one with one edit": ("one_edit", "before_one"),
        "cycle prompt → image → caption, F1, zh": ("cycle_f1", "zh"),
        "cycle prompt → image → caption, F1, en": ("cycle_f1", "en"),
    }
    rows = []
    for name, (group, key) in names.items():
        rows.append(_row(name, [section[column][group][key] for column in COLUMNS]))
    yield Table("The pair", ("", *COLUMNS), rows)


def _outside(section: Report) -> Iterator[Table]:
    for model, found in section.items():
        rows = [
            [
                kind,
                as_text(each.get("auroc")),
                as_text(each["flagged"]),
                as_text(each["confidence"]),
            ]
            for kind, each in found["kinds"].items()
        ]
        rows.append(["mean over kinds", as_text(found["auroc_mean_of_kinds"]), "", ""])
        rows.append(["kinds never met in training", as_text(found["auroc_kinds_never_met"]), "", ""])
        yield Table(
            f"Outside the drawn world: {model}",
            ("", "AUROC", "out_of_domain: true", "confidence"),
            rows,
        )


def _speed(section: Report) -> Iterator[Table]:
    rows = [
        [
            f"{name}, {threads} thread{'s' * (threads != '1')}",
            f"{took['median_ms']:.1f}",
            f"{took['p90_ms']:.1f}",
        ]
        for threads, calls in section["threads"].items()
        for name, took in calls.items()
    ]
    yield Table(
        f"Speed, one at a time, on {section['cores']} cores",
        ("", "median ms", "90 % within ms"),
        rows,
    )


def _distances(section: Report) -> Iterator[Table]:
    rows = [
        [
            c,
            str(f["images"]),
            f"{f['frechet']:.3f}",
            f"{f['kernel']:.4f} ± {f['kernel_spread']:.4f}",
        ]
        for c, f in section.items()
    ]
    note = "Features of our own recogniser's encoder, not of Inception: only to be compared with each other."
    yield Table("Distance from true pictures", ("", "images", "Fréchet", "kernel"), rows, note)


_SECTIONS = {
    "generation": _generation,
    "by_hand": _by_hand,
    "recognition": _recognition,
    "folds": _folds,
    "description": _description,
    "pope": _pope,
    "pairs": _pairs,
    "outside": _outside,
    "speed": _speed,
    "distances": _distances,
    "judge": _judge,
}
_COLOURS = {"aim": "green", "reached": "green", "missed": "red"}


def show(report: Report, console: Console) -> None:
    """Prints all tables of a report."""
    for table in tables(report):
        shown = RichTable(*table.heads, title=table.title, caption=table.note or None, title_justify="left")
        for row in table.rows:
            shown.add_row(*row, style=_COLOURS.get(row[-1]))
        console.print(shown)
