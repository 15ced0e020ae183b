"""How data sets look at the terminal: a live progress bar, lists, and the outcome of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from api.cli.terminal import err, out
from tuwen.client import Client
from tuwen.datasets import Dataset, DatasetProgress, DatasetStatus

_COLOURS = {
    DatasetStatus.PLANNING: "yellow",
    DatasetStatus.RUNNING: "cyan",
    DatasetStatus.EXPORTING: "cyan",
    DatasetStatus.SUCCEEDED: "green",
    DatasetStatus.FAILED: "red",
    DatasetStatus.CANCELLED: "bright_black",
}

_ESTIMATE = (
    *("entries", "problems", "broken", "examples", "images", "exact_duplicates", "near_duplicates", "dropped"),
    *("to_annotate", "seconds", "device_hours", "images_per_second", "devices"),
    *("captioned", "bytes", "shorter_sides", "aspects"),
)
"""Fields of an estimate in the order in which they are printed: found, broken, copies, kept; then what it takes."""


def follow(client: Client, dataset: Dataset) -> Dataset:
    """Wait until the data set is over and return it, showing a progress bar when standard error is a terminal."""
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("[dim]{task.fields[speed]}[/]"), TimeElapsedColumn()]
    bars = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    bar = bars.add_task("", total=None, speed="")
    with bars:
        for now in client.datasets.iter_events(dataset.id):
            dataset, progress = now, now.progress
            bars.update(
                bar,
                description="paused" if now.paused else now.status.value,
                completed=progress.done + progress.failed,
                total=progress.images if progress.planned else None,
                speed=speed(progress),
            )
    return dataset


def speed(progress: DatasetProgress) -> str:
    """Speed of a run in words: `83 images/s, 1,240 tokens/s, 2 failed, 0:12:30 left, 2 workers`."""
    parts = []
    if progress.images_per_second:
        parts.append(f"{progress.images_per_second:,.0f} images/s")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.eta:
        parts.append(f"{timedelta(seconds=round(progress.eta))} left")
    if len(progress.workers) > 1:
        parts.append(f"{len(progress.workers)} workers")
    return ", ".join(parts)


def print_datasets(datasets: Iterable[Dataset]) -> None:
    """Print a table of data sets to standard output."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("id", "status", "images", "kept", "dropped", "failed", "created"):
        table.add_column(column, no_wrap=True)
    table.add_column("source → destination", overflow="fold")
    for dataset in datasets:
        request, progress = dataset.request, dataset.progress
        table.add_row(
            str(dataset.id),
            _status(dataset),
            f"{progress.done + progress.failed:,}/{progress.images:,}",
            f"{progress.done - progress.dropped:,}",
            f"{progress.dropped:,}",
            f"{progress.failed:,}",
            dataset.created_at.astimezone().strftime("%m-%d %H:%M"),
            escape(f"{request.source} → {'dry run' if request.dry_run else request.destination}"),
        )
    Console(highlight=False, width=max(out.width, 120)).print(table)


def print_dataset(dataset: Dataset) -> None:
    """Print all that is known of a data set to standard output, a field a line."""
    request, progress = dataset.request, dataset.progress
    rows = {
        "id": str(dataset.id),
        "status": _status(dataset),
        "source": escape(request.source),
        "destination": "none: a dry run"
        if request.dry_run
        else escape(f"{request.destination} ({request.destination_format})"),
        "tasks": ", ".join([*request.tasks, *request.languages, *request.styles]),
        "priority": str(dataset.priority),
        "images": f"{_outcome(progress)}, {progress.left:,} left of {progress.images:,}"
        + ("" if progress.planned else " planned so far"),
        "shards": f"{progress.shards - progress.shards_left:,} of {progress.shards:,}",
        "speed": speed(progress) if dataset.finished_at is None else "",
        "workers": "\n".join(
            f"{escape(each.worker)}: {each.images_per_second:,.1f} images/s, {each.shards} shards"
            for each in progress.workers
        ),
        "error": f"[red]{escape(f'{dataset.error.code}: {dataset.error.detail}')}[/]" if dataset.error else "",
    }
    _print_rows(rows)
    if dataset.estimate is not None:
        print_estimate(dataset.estimate)


def print_outcome(dataset: Dataset, *, exporting: bool = False) -> None:
    """Print how a data set ended, in a line or two; after an export, with no advice about what failed before it."""
    if dataset.estimate is not None:
        err.print(f"[dim]dry run of {escape(dataset.request.source)}: nothing was annotated or written[/]")
        print_estimate(dataset.estimate)
        return
    progress = dataset.progress
    out.print(f"{dataset.id} {dataset.status}: {_outcome(progress)}")
    if dataset.status is DatasetStatus.SUCCEEDED and dataset.request.destination:
        out.print(escape(dataset.request.destination))
    if progress.failed and not exporting:
        err.print(f"[dim]errors.jsonl says why each image failed. {_advise(dataset)}[/]", soft_wrap=True)


def _outcome(progress: DatasetProgress) -> str:
    """What has become of the images, in numbers that add up."""
    kept = f"{progress.done - progress.dropped:,} kept"
    return f"{kept}, {progress.dropped:,} dropped, {progress.failed:,} failed"


def _advise(dataset: Dataset) -> str:
    """What can be done about images that failed."""
    progress, command = dataset.progress, f"tuwen datasets retry {dataset.id} --failed"
    if progress.failed > progress.final:
        again = progress.failed - progress.final
        return f"{again:,} may pass another time: {command}"
    return f"None of them passes as long as the source is as it is; once it is mended: {command}"


def print_estimate(estimate: Mapping[str, object]) -> None:
    """Print the estimate of a dry run: what there is, what is wrong with it, what it would take."""
    # PostgreSQL keeps the fields of a JSON object in an order of its own.
    names = [*(name for name in _ESTIMATE if name in estimate), *(name for name in estimate if name not in _ESTIMATE)]
    estimate = {name: estimate[name] for name in names}
    _print_rows({name.replace("_", " "): escape(_figure(value)) for name, value in estimate.items()})


def _figure(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_figure(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "\n".join(map(_figure, value))
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _status(dataset: Dataset) -> str:
    paused = " (paused)" if dataset.paused else ""
    return f"[{_COLOURS[dataset.status]}]{dataset.status}[/]{paused}"


def _print_rows(rows: Mapping[str, str]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    Console(highlight=False).print(table)
