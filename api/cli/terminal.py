"""How things look at the terminal: the processes of `tuwen up`, jobs in progress, results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ByteSize
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tuwen.client import Client
from tuwen.jobs import (
    DescribeResult,
    GenerateResult,
    Job,
    MatchResult,
    PairReport,
    RecognizedObject,
    RecognizeResult,
    Status,
    Tenant,
)

if TYPE_CHECKING:
    from api.cli.finding import Finding
    from api.embedded.stack import Event, System
    from shared.database.keys import ApiKey
    from shared.database.usage import TenantUsage
    from shared.database.webhooks import UndeliveredWebhook
    from shared.settings import Settings

# Results go to standard output, and everything else, such as progress, to standard error.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_TABLE_WIDTH = 120
"""Columns of a list of jobs. A narrower terminal wraps lines but cuts nothing, so that ids can be copied."""

_BESIDE_BAR = 60
"""Characters of an unfinished text that are shown beside a progress bar."""

_COLOURS = {
    Status.QUEUED: "yellow",
    Status.RUNNING: "cyan",
    Status.SUCCEEDED: "green",
    Status.FAILED: "red",
    Status.QUARANTINED: "red",
    Status.EXPIRED: "magenta",
    Status.CANCELLED: "bright_black",
}


class FamilyView:
    """Prints a line for each process that is ready, died or came back, and a spinner for those that are starting."""

    def __init__(self) -> None:
        self._under_way: dict[str, float] = {}
        self._status = err.status("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def tell(self, event: Event) -> None:
        """Show a change of one process."""
        name = event.process
        match event.what:
            case "starting" | "stopping":
                self._under_way[name] = time.monotonic()
            case "ready":
                seconds = time.monotonic() - self._under_way.pop(name)
                err.print(f"  [green]✓[/] {name:<12} {escape(event.detail):<28} [dim]{seconds:.1f} s[/]")
            case "died":
                self._under_way.pop(name, None)
                headline, *log = event.detail.splitlines()
                err.print(f"  [red]✗[/] {escape(headline)}")
                for line in log:
                    err.print(f"    [dim]{escape(line)}[/]")
        if self._under_way:
            self._status.update(f"[dim]{event.what} {', '.join(self._under_way)} …[/]")
            self._status.start()
        else:
            self._status.stop()


def wait_for(client: Client, jobs: Sequence[Job]) -> Iterator[Job]:
    """Yield the jobs in order, each as soon as it is over, showing a progress bar when standard error is a terminal.

    The bar counts jobs when there are several, and the steps of the job when there is one.
    """
    label = TextColumn("{task.description}")
    columns = [SpinnerColumn(), label, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    bars = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    bar = bars.add_task("", total=len(jobs) if len(jobs) > 1 else None)
    with bars:
        for number, submitted in enumerate(jobs):
            bars.start()
            for job in client.iter_events(submitted.id):
                bars.update(bar, description=f"{job.kind} [dim]{job.status}[/]", completed=number)
                if job.progress and len(jobs) == 1:
                    bars.update(bar, completed=job.progress.step, total=job.progress.steps)
                if text := growing_text(job):
                    bars.update(bar, description=escape(text))
            # The bar is erased while the caller prints: results go to another stream, but often to the same screen.
            bars.stop()
            yield job


def growing_text(job: Job) -> str:
    """The end of the text that a job is writing, short enough to be shown beside a bar."""
    parts = job.progress.parts if job.progress else ()
    text = next((part.text for part in parts if part.text and part.index == 0), "")
    line = " ".join(text.split())
    return line if len(line) <= _BESIDE_BAR else f"…{line[1 - _BESIDE_BAR :]}"


def outcome(job: Job) -> str:
    """How a job ended, in one line or a few."""
    match job.result:
        case GenerateResult() as made:
            words = f"; the model does not know {', '.join(made.unknown_words)}" if made.unknown_words else ""
            size = f"{made.image.width}×{made.image.height}"
            return f"{size}, seed {made.seed}{_score_text(made)}{words}{_drawn_text(made)}"
        case DescribeResult() as said:
            score = "" if said.score is None else f"  (score {said.score:.3f})"
            return said.text + _doubt(said.confidence, said.out_of_domain) + score
        case RecognizeResult() as seen:
            lines = [_object(thing) for thing in seen.objects] or ["nothing"]
            if seen.relation and len(seen.objects) > 1:
                first, second = seen.objects[:2]
                lines.append(f"{first.name} {_RELATIONS.get(seen.relation, seen.relation)} {second.name}")
            if seen.scene:
                lines.append(f"scene: {seen.scene} {seen.scene_zh or ''}".rstrip())
            lines[-1] += _doubt(seen.confidence, seen.out_of_domain)
            return "\n".join(lines)
        case MatchResult() as fit:
            return f"{fit.score:.3f}" + (_statements(fit.report) if fit.report else "")
    if job.error:
        return f"{job.error.code}: {job.error.detail}"
    return str(job.status)


_RELATIONS = {"left": "left of", "right": "right of"}


def _drawn_text(made: GenerateResult) -> str:
    """A line with what was drawn, in the model's words, and one for each warning."""
    drawn = f"\ndrawn: {made.revised_prompt}" if made.revised_prompt else ""
    return drawn + "".join(f"\nwarning: {warning}" for warning in made.warnings)


def _score_text(made: GenerateResult) -> str:
    if made.score is None:
        return ""
    others = ", ".join(f"{each.score:.3f}" for each in made.candidates[1:])
    short = ", short of what was wanted" if made.fell_short else ""
    return f", score {made.score:.3f}{short}" + (f" (the others {others})" if others else "")


def _statements(report: PairReport) -> str:
    """A line for each statement, with a mark that says whether it was found in the image."""
    lines = [f"\n  {'✓' if claim.found else '✗'} {claim.text}  ({claim.score:.3f})" for claim in report.claims]
    unknown = f"\n  ? {', '.join(report.unknown_words)}" if report.unknown_words else ""
    return "".join(lines) + unknown


def _doubt(confidence: float, out_of_domain: bool) -> str:
    unlike = ", unlike anything the model learnt from" if out_of_domain else ""
    return f"  ({confidence:.0%}{unlike})"


def _object(thing: RecognizedObject) -> str:
    english = [*thing.attributes.values(), *([thing.action] if thing.action else [])]
    chinese = [*thing.attributes_zh.values(), *([thing.action_zh] if thing.action_zh else [])]
    count = f" ×{thing.count}" if thing.count > 1 else ""
    return f"{thing.name} {thing.name_zh}{count}: {', '.join(english)}  {'，'.join(chinese)}".rstrip(": ")


def print_jobs(jobs: Iterable[Job]) -> None:
    """Print a table of jobs to standard output."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("id", "kind", "status", "created", "took"):
        table.add_column(column, no_wrap=True)
    table.add_column("about", overflow="ellipsis", no_wrap=True, ratio=1)
    for job in jobs:
        status = f"[{_COLOURS[job.status]}]{job.status}[/]"
        created = job.created_at.astimezone().strftime("%m-%d %H:%M:%S")
        table.add_row(str(job.id), job.kind, status, created, duration(job), escape(_about(job)))
    _wide_console().print(table)


def print_job(job: Job) -> None:
    """Print all that is known of a job to standard output, a field a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = {
        "id": str(job.id),
        "kind": job.kind,
        "status": f"[{_COLOURS[job.status]}]{job.status}[/]{' (cancel requested)' if job.cancel_requested else ''}",
        "model": escape(job.model),
        "about": escape(_about(job)),
        "priority": str(job.priority),
        "attempts": f"{job.attempts} of {job.max_attempts}",
        "worker": escape(job.worker or ""),
        "created": _moment(job.created_at),
        "started": _moment(job.started_at),
        "finished": _moment(job.finished_at),
        "took": duration(job),
        "result": escape(outcome(job)) if job.result else "",
        "image": job.result_url or "",
        "error": f"[red]{escape(outcome(job))}[/]" if job.error else "",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    Console(highlight=False).print(table)


def print_json(value: Job | Mapping[str, Any]) -> None:
    """Print a value as one line of JSON to standard output."""
    text = value.model_dump_json() if isinstance(value, Job) else json.dumps(value, ensure_ascii=False, default=str)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_keys(keys: Iterable[ApiKey], usage: Mapping[Tenant, TenantUsage], settings: Settings) -> None:
    """Print a table of API keys to standard output, with what their tenants use of each bound."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in (
        *("id", "name", "tenant", "jobs", "stored", "data sets", "batches", "webhooks", "places of data sets"),
        *("created", "revoked"),
    ):
        table.add_column(column, no_wrap=True)
    for key in keys:
        used = usage[key.tenant]
        stored = (used.stored_bytes, key.max_stored_bytes or settings.default_stored_bytes)
        table.add_row(
            str(key.id),
            escape(key.name),
            escape(key.tenant),
            f"{used.jobs}/{key.quota}",
            "/".join(ByteSize(size).human_readable() for size in stored),
            f"{used.datasets}/{key.max_datasets or settings.default_datasets}",
            f"{used.batches}/{key.max_batches or settings.default_batches}",
            "own secret" if key.signs_webhooks else "shared",
            escape(", ".join(key.dataset_roots) or "none"),
            _moment(key.created_at),
            _moment(key.revoked_at),
        )
    Console(highlight=False, width=10_000).print(table, crop=False, no_wrap=True)


def print_webhooks(webhooks: Iterable[UndeliveredWebhook]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("id", "state", "attempts", "owed since", "next attempt", "url", "last error"):
        table.add_column(column, no_wrap=True)
    for webhook in webhooks:
        moments = (_moment(webhook.owed_at), _moment(webhook.due_at))
        state, attempts = webhook.state, str(webhook.attempts)
        table.add_row(str(webhook.id), state, attempts, *moments, escape(webhook.url), escape(webhook.error or ""))
    # As wide as the longest URL: none is cut.
    Console(highlight=False, width=10_000).print(table, crop=False, no_wrap=True)


def _wide_console() -> Console:
    return Console(highlight=False, width=max(out.width, _TABLE_WIDTH))


def print_addresses(system: System) -> None:
    """Print the addresses of a running system to standard error."""
    login = "user {}, password {}".format(*system.flower_login) if system.flower_login else None
    rows = {
        "API docs": f"{system.url}/docs",
        "Flower": system.flower_url,
        "login": login,
        "data": short_path(system.data),
        "try": 'tuwen generate "a black cat jumping on the grass"',
    }
    print_rows(rows)
    err.print("\n  Ctrl-C stops it.")


def print_rows(rows: Mapping[str, str | None]) -> None:
    """Print names and values to standard error; those without a value are left out."""
    err.print()
    for name, value in rows.items():
        if value:
            err.print(f"  [bold]{name:<9}[/] {escape(value)}")


def print_finding(finding: Finding) -> None:
    """Print a finding of `tuwen doctor`, with its advice."""
    mark = "[green]✓[/]" if finding.fine else "[red]✗[/]" if finding.serious else "[yellow]![/]"
    out.print(f"{mark} {finding.subject:<18} {escape(finding.found)}")
    if finding.advice:
        out.print(f"  {'':<18} [bold]→ {escape(finding.advice)}[/]")


def duration(job: Job) -> str:
    """Run time of a job in seconds, as text; so far, while it runs."""
    if job.started_at is None:
        return ""
    return f"{((job.finished_at or datetime.now(UTC)) - job.started_at).total_seconds():.2f} s"


def _moment(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def _about(job: Job) -> str:
    text = job.input.get("prompt") or job.input.get("text")
    if text:
        return str(text)
    image = job.input.get("image") or {}
    return str(image.get("url") or str(image.get("file_id", ""))[:12])


def short_path(path: Path) -> str:
    """`path` as a person would write it in the working folder."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
