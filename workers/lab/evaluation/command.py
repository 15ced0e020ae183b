"""Measure the built-in models and write a report."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tuwen.errors import ConfigurationError, TuwenError
from workers.lab.evaluation.page import page, wrong_captions, wrong_recognitions
from workers.lab.evaluation.prompts import write_jsonl
from workers.lab.evaluation.run import QUICK, SECTIONS, Evaluation, Sizes, as_json
from workers.lab.evaluation.tables import show


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="tuwen evaluate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small samples, about a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"), help="folder of the report")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        help="parts of the report to measure; by default all but distances",
    )
    parser.add_argument(
        "--prompts",
        type=int,
        help=f"number of prompts of each tag and column, by default {Sizes().prompts}",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        help=f"number of pictures of each test split, by default {Sizes().pictures}",
    )
    parser.add_argument(
        "--distances",
        type=int,
        help="pictures of each split for Fréchet and kernel distance; 10000 or more",
    )
    parser.add_argument(
        "--folds",
        type=Path,
        help="folds.json of a cross-validation (tuwen train … --folds), to show beside the rest",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/pictures"),
        help="folder that keeps drawn pictures",
    )
    parser.add_argument("--device", default="cpu", help="device that the models run on")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processor threads; by default all cores",
    )
    return parser.parse_args()


def main() -> int:
    """Measures, writes the report and shows it; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = arguments()
    torch.set_num_threads(options.threads)
    asked = {name: getattr(options, name) for name in ("prompts", "pictures", "distances")}
    given = {name: count for name, count in asked.items() if count is not None}
    sizes = replace(QUICK if options.quick else Sizes(), **given)
    sections = options.sections or [name for name in SECTIONS if name != "distances" or sizes.distances]
    console = Console(stderr=True)
    evaluation = Evaluation(sizes, options.device, options.cache)
    try:
        if options.folds:
            evaluation.report["folds"] = cross_validation(options.folds)
        with console.status("loading") as status:
            evaluation.run(sections, lambda name: status.update(name))
            write(evaluation, options.out)
    except TuwenError as error:
        console.print(f"[red]error:[/] {error}")
        return 1
    # Output that goes to a file has no width to break lines at.
    show(evaluation.report, Console(width=None if sys.stdout.isatty() else 140))
    if options.quick:
        console.print("A quick run: samples are small and intervals wide.")
    console.print(f"{options.out / 'report.html'}")
    return 0


def cross_validation(path: Path) -> dict[str, Any]:
    """What a cross-validation wrote.

    Raises:
        ConfigurationError: there is no such file.
    """
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(
            f"no cross-validation at {path}: `tuwen train recognizer --folds 5 --out RUN` writes RUN/folds.json"
        ) from error
    return told


def write(evaluation: Evaluation, out: Path) -> None:
    """`report.json`, `report.html` and the prompts in GenEval's schema."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(as_json(evaluation.report), encoding="utf-8")
    failures = {}
    for column, data in evaluation.data.items():
        if "description" in evaluation.report:
            for name, wrong in wrong_captions(data, evaluation.captions[column]).items():
                failures[f"{name}, {column} combinations"] = wrong
        if "recognition" in evaluation.report:
            failures[f"recognition, {column} combinations"] = wrong_recognitions(data, evaluation.recognized[column])
    (out / "report.html").write_text(page(evaluation.report, evaluation.gallery, failures), encoding="utf-8")
    asked = [d.prompt for tags in evaluation.gallery.values() for drawn in tags.values() for d in drawn]
    if asked:
        write_jsonl(asked, out / "evaluation_metadata.jsonl")
