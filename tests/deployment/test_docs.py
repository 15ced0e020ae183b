"""The pages tell the truth: what they link, name and have people type exists."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise, takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import typer.main
from typer.core import TyperGroup

from api.app import create_app
from api.cli.main import app
from shared.settings import Settings
from tests.support.waiting import PATIENT

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOPS = {"api", "deploy", "docs", "release", "requirements", "shared", "tests", "tuwen", "workers"}
"""Folders whose files the pages name; other paths are those of a user, such as `runs/evaluation`."""

LINK = re.compile(r"\[(?P<text>(?:[^\]\\]|\\.)*)\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"TUWEN_[A-Z0-9_]*[A-Z0-9]")
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")

OF_OTHERS = {"TUWEN_URL", "TUWEN_API_KEY", "TUWEN_BIND"}
"""Variables that are no settings: two options of the command, and one of docker-compose.yml."""
PASSED_ON = {"evaluate", "flower", "housekeeper", "train", "worker"}
"""Commands that hand their arguments to another program."""
A_VALUE = {"ID": str(uuid4()), "NAME": "alice", "MODEL": "recognizer", "PROMPT": "a cat"}
"""What stands in commands for a value of the reader's."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def fenced(page: Path, *languages: str) -> Iterator[str]:
    yield from (text for language, text in FENCE.findall(page.read_text()) if language in languages)


def spans(page: Path) -> list[str]:
    """What stands in backticks in running text."""
    return CODE.findall(prose(page))


@cache
def anchors(page: Path) -> frozenset[str]:
    """Fragments of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


# ── links and files ───────────────────────────────────────────────────────────────────────────────


@pages
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.finditer(prose(page)):
        place, _, fragment = link["target"].partition("#")
        if "://" in place:
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link[0])
    assert broken == []


def named_paths(page: Path) -> Iterator[str]:
    """Paths of the repository that the page names, in running text, link texts and commands."""
    words = [*spans(page), *(link["text"].replace("\\", "") for link in LINK.finditer(prose(page)))]
    for command in commands(page):
        words += command
    for word in words:
        path = word.partition("::")[0].removeprefix("./")
        if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", path) and (path.endswith(".py") or path.split("/")[0] in TOPS):
            yield path


@pages
def test_every_file_that_is_named_exists(page: Path) -> None:
    def exists(path: str) -> bool:
        if path.endswith(".py") and path.split("/")[0] not in TOPS:
            # A name alone, or with its last folder, after the page has said which room it speaks of.
            return any(True for top in TOPS for _ in (ROOT / top).rglob(path))
        return any(True for _ in ROOT.glob(path))

    names = [path for path in named_paths(page) if "/" in path or path.endswith(".py")]
    # A numbered example of a file to be made is written in capitals: NNNN_what.py, NAME.py.
    assert [path for path in names if not re.search(r"NAME|NNNN", path) and not exists(path)] == []


@cache
def defined(file: Path) -> frozenset[str]:
    """Names that a Python file defines: `function`, `Class`, `Class.method`, `CONSTANT`, `Class.field`."""

    def targets(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node.name
            elif isinstance(node, ast.ClassDef):
                yield node.name
                yield from (f"{node.name}.{name}" for name in targets(node.body))
            elif isinstance(node, ast.Assign):
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id

    return frozenset(targets(ast.parse(file.read_text()).body))


def tables(page: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The headings and rows of each table of the page."""
    for is_table, lines in groupby(prose(page).splitlines(), lambda line: line.startswith("|")):
        if is_table:
            head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
            yield head, rows


def linked_files(page: Path, text: str) -> list[Path]:
    targets = [link["target"].partition("#")[0] for link in LINK.finditer(text)]
    return [file for target in targets if (file := (page.parent / target).resolve()).suffix == ".py"]


def test_every_function_is_in_the_file_beside_it() -> None:
    wrong, count = [], 0
    for page in (ARCHITECTURE, ROOT / "docs" / "glossary.md"):
        for head, rows in tables(page):
            for row in rows:
                match head[:2]:
                    case ["step", "file"]:
                        files, names = linked_files(page, row[1]), CODE.findall(row[2])
                        assert files, row
                        assert names, row
                    case ["word", _]:
                        files, names = linked_files(page, row[2]), CODE.findall(row[2])
                        names = names if files else []
                    case [heading, _] if heading.startswith("functions of"):
                        files, names = linked_files(page, heading), CODE.findall(row[0])
                    case _:
                        continue
                count += len(names)
                wrong += [(name, row) for name in names if not any(name in defined(file) for file in files)]
    assert wrong == []
    assert count > 150


@pytest.mark.parametrize("page", [ARCHITECTURE, ROOT / "docs" / "glossary.md", ROOT / "CONTRIBUTING.md"])
def test_every_method_that_is_named_exists(page: Path) -> None:
    ours = {name for top in TOPS - {"docs"} for file in (ROOT / top).rglob("*.py") for name in defined(file)}
    named = {span for span in spans(page) if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*\.\w+", span)}
    assert named - ours == set()


def test_every_promise_of_the_threat_model_names_a_test_that_exists() -> None:
    page, missing, count = ROOT / "docs" / "threat_model.md", [], 0
    for part in re.split(r"[|.]\s|\n\n", prose(page)):
        names = re.findall(r"`((?:Test\w+\.)?test_\w+)`", part)
        files = [ROOT / "docs" / link["target"] for link in LINK.finditer(part) if "/test_" in link["target"]]
        count += len(names)
        missing += [name for name in names if files and not any(name in defined(file.resolve()) for file in files)]
    assert missing == []
    assert count > 40
    # Every row that promises something says what shows it, but for the administrator's, who is promised nothing.
    rows = [row for head, table in tables(page) for row in table if head[-1] == "shown by"]
    assert [row[0] for row in rows if "`test_" not in row[-1].replace("`Test", "`test_")] == ["the administrator"]


def ways() -> Iterator[list[list[str]]]:
    """The steps of the way of a job, and of the way of a data set."""
    way: list[list[str]] = []
    for head, rows in tables(ARCHITECTURE):
        if head[0] != "step":
            continue
        if rows[0][0] == "1" and way:
            yield way
            way = []
        way += rows
    yield way


def test_a_reader_finds_each_step_in_the_file_of_the_one_that_calls_it() -> None:
    lost = []
    for way in ways():
        for number, row in enumerate(way, 1):
            step = re.fullmatch(r"(\d+)(?: ([←⇠]) (\d+))?", row[0])
            assert step, row
            assert int(step[1]) == number
            assert (step[2] is None) == (number == 1)
            if step[2] is None:
                continue
            assert 1 <= int(step[3]) < number
            if step[2] == "←":
                [caller] = linked_files(ARCHITECTURE, way[int(step[3]) - 1][1])
                called = [name.rpartition(".")[2] for name in CODE.findall(row[2])]
                if not any(re.search(rf"\b{name}\b", caller.read_text()) for name in called):
                    lost.append(row)
    assert lost == []


# ── floors ────────────────────────────────────────────────────────────────────────────────────────


def layers() -> list[str]:
    [contract] = [each for each in PROJECT["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    return list(contract["layers"])


def test_the_floors_are_those_that_import_linter_checks() -> None:
    drawn = next(block for block in fenced(ARCHITECTURE, "mermaid") if "flowchart TB" in block)
    labels = dict(re.findall(r'(f\d+)\["([^"]+)"\]', drawn))
    arrows = re.findall(r"^\s*(f\d+)(?:\[[^\]]*\])? --> (f\d+)", drawn, re.MULTILINE)
    assert [labels[upper] for upper, _ in arrows] + [labels[arrows[-1][1]]] == layers()
    assert all(before[1] == after[0] for before, after in pairwise(arrows))


def test_every_room_has_its_line() -> None:
    [rows] = [rows for head, rows in tables(ARCHITECTURE) if head[0] == "room"]
    rooms = [room.strip() for layer in layers() for room in layer.split("|")]
    assert [row[0].strip("`") for row in rows] == rooms


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command that the page has people type."""
    for block in fenced(page, "console", "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.removeprefix("$ ")
            if line.startswith("$ ") or not any(each.startswith("$ ") for each in block.splitlines()):
                yield list(takewhile(lambda word: word not in ("|", ">", "&&"), shlex.split(text, comments=True)))


def tuwen_commands() -> Iterator[tuple[str, list[str], bool]]:
    """Page, arguments of `tuwen`, and whether they are whole: in running text only the beginning may be given."""
    for page in PAGES:
        yield from ((page.name, words[1:], True) for words in commands(page) if words[:1] == ["tuwen"])
        for span in spans(page):
            if re.match(r"tuwen( |$)", span) and "…" not in span:
                yield page.name, shlex.split(span)[1:], False


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these arguments of `tuwen` name, and the arguments that are its own."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        found = command.get_command(typer.Context(command), rest[0])
        assert found is not None, f"there is no command {rest[0]}"
        command, rest = found, rest[1:]
    return command, rest


@cache
def passed_on_help(command: str) -> str:
    """What the program behind a command says of its arguments."""
    program = [sys.executable, "-m", "api.cli", command, "--help"]
    shown = subprocess.run(program, capture_output=True, text=True, timeout=PATIENT, cwd=ROOT, check=False)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


@pytest.mark.parametrize(
    ("page", "words", "whole"),
    [pytest.param(*found, id=f"{found[0]}: {' '.join(found[1])}") for found in tuwen_commands()],
)
def test_every_command_is_understood(page: str, words: list[str], whole: bool) -> None:
    command, arguments = find_command(words)
    given = {word.partition("=")[0] for word in arguments if OPTION.match(word)}
    if command.name in PASSED_ON:
        shown = passed_on_help(command.name)
        choices = {choice for group in re.findall(r"{([\w,]+)}", shown) for choice in group.split(",")}
        assert given <= set(OPTION.findall(shown))
        # The model to train comes first, if anything does.
        assert {word for word in arguments[:1] if OPTION.match(word) is None} <= choices
        return
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    assert given <= known
    if whole:
        # Raises an error of usage where a value or an argument is missing, or is none that is allowed.
        command.make_context(command.name, [A_VALUE.get(word, word) for word in arguments])


def test_there_are_commands_to_check() -> None:
    found = list(tuwen_commands())
    assert len([words for _, words, whole in found if whole]) > 20
    assert {words[0] for _, words, _ in found if words} >= {"up", "generate", "annotate", "datasets", "worker", "train"}


@pages
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = [*(" ".join(words) for words in commands(page)), *spans(page)]
    used = [line.split()[1] for line in typed if re.match(r"make \w", line)]
    assert [target for target in used if target not in targets] == []


@pages
def test_every_module_that_is_run_exists(page: Path) -> None:
    typed = [*(" ".join(words) for words in commands(page)), *spans(page)]
    modules = [module for line in typed for module in re.findall(r"python -m ([\w.]+)", line)]
    ours = [module.replace(".", "/") for module in modules if module.split(".")[0] in TOPS]
    assert [
        module for module in ours if not ((ROOT / f"{module}.py").exists() or (ROOT / module / "__main__.py").exists())
    ] == []


# ── settings, extras, routes ──────────────────────────────────────────────────────────────────────


@pages
def test_every_setting_exists(page: Path) -> None:
    known = {f"TUWEN_{name.upper()}" for name in Settings.model_fields} | OF_OTHERS
    assert set(VARIABLE.findall(page.read_text())) - known == set()


@pages
def test_every_extra_exists(page: Path) -> None:
    named = {extra for extras in re.findall(r"tuwen\[([\w,]+)\]", page.read_text()) for extra in extras.split(",")}
    assert named - PROJECT["project"]["optional-dependencies"].keys() == set()


@cache
def operations() -> frozenset[str]:
    document = create_app(Settings()).openapi()
    return frozenset(
        f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
        for path, methods in document["paths"].items()
        for method in methods
    )


@pages
def test_every_route_exists(page: Path) -> None:
    named = [span for span in spans(page) if re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) /\S+", span)]
    assert [span for span in named if re.sub(r"{[^}]*}", "{}", span) not in operations()] == []
