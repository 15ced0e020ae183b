"""`tuwen annotate` and `tuwen datasets …`: annotate whole data sets, watch and steer the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args
from uuid import UUID

import typer
from rich.markup import escape

from api.cli import dataset_terminal as shown
from api.cli.images import PANEL, AsJson, NoWait
from api.cli.place import place
from api.cli.terminal import err, out, print_json
from tuwen.client import Client
from tuwen.datasets import (
    Dataset,
    DatasetRequest,
    DatasetStatus,
    ExportFormat,
    ExportRequest,
    Filters,
    SourceFormat,
    Task,
)
from tuwen.errors import Unavailable
from tuwen.jobs import Kind, Language, Style

app = typer.Typer()
datasets = typer.Typer(help="Watch and steer the annotation of data sets.", no_args_is_help=True)

Id = Annotated[UUID, typer.Argument(metavar="ID")]
Ids = Annotated[list[UUID], typer.Argument(metavar="ID")]
Destination = Annotated[str, typer.Option("-o", "--out", help="Folder, file or s3:// prefix to export to.")]
Format = Annotated[ExportFormat, typer.Option("-f", "--format", help="Format of the export.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace captions that the destination already has.")]

TASKS = tuple(task.value for task in get_args(Task))
STYLES: tuple[str, ...] = get_args(Style)


def _each_among(allowed: Sequence[str]) -> Callable[[list[str] | None], list[str] | None]:
    """Callback of an option that may be repeated; typer itself takes no list of choices."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in allowed:
                raise typer.BadParameter(f"{value!r} is none of {', '.join(allowed)}")
        return values

    return check


@app.command(rich_help_panel=PANEL)
def annotate(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, zip, list, COCO or Parquet file, tars, or s3://BUCKET/PREFIX, as the workers see it."
        ),
    ],
    destination: Annotated[
        str | None, typer.Option("-o", "--out", help="Folder, file or s3:// prefix to export the annotations to.")
    ] = None,
    destination_format: Format = "jsonl",
    source_format: Annotated[
        SourceFormat, typer.Option(help="Format of the source, where it cannot be recognised.")
    ] = "auto",
    source_root: Annotated[str | None, typer.Option(help="Folder that the paths in a list are relative to.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column that names the image, for CSV, TSV and Parquet sources.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column with an existing caption, for CSV, TSV and Parquet sources.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of the source's texts, such as gb18030, where it is not recognised.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "-t",
            "--task",
            callback=_each_among(TASKS),
            help="Task: describe, recognize or match; may be repeated. By default describe.",
        ),
    ] = None,
    language: Annotated[Literal["zh", "en", "both"], typer.Option("-l", "--language")] = "en",
    style: Annotated[
        list[str] | None,
        typer.Option(
            callback=_each_among(STYLES),
            help="Caption style: short, detailed or tags; may be repeated. By default short.",
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Instruction for each image, for models that take a prompt.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, max=2048)] = 64,
    candidates: Annotated[
        int, typer.Option(min=1, max=16, help="Captions to write for each image; the one that fits best is kept.")
    ] = 1,
    min_side: Annotated[
        int | None, typer.Option(min=1, help="Drop images whose shorter side has fewer pixels.")
    ] = None,
    max_side: Annotated[int | None, typer.Option(min=1, help="Drop images whose longer side has more pixels.")] = None,
    max_aspect: Annotated[
        float | None, typer.Option(min=1, help="Drop images whose longer side is more than this times the shorter.")
    ] = None,
    duplicates: Annotated[
        Literal["keep", "exact", "perceptual"], typer.Option(help="Duplicate images to drop before a model sees them.")
    ] = "keep",
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Drop images in which the model has less confidence.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Drop images whose caption has a lower match score.")
    ] = None,
    in_domain: Annotated[bool, typer.Option("--in-domain", help="Drop images unlike the training data.")] = False,
    overwrite: Overwrite = False,
    priority: Annotated[int, typer.Option(min=0, max=9, help="Priority among data sets; single jobs go first.")] = 5,
    shard_size: Annotated[int, typer.Option(min=1, max=10_000, help="Images in each shard.")] = 500,
    max_attempts: Annotated[int, typer.Option(min=1, max=20, help="Attempts for each image.")] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count, check and estimate; annotate nothing.")
    ] = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Annotate a whole data set. The run is resumable, and every image ends with a result or an error."""
    if destination is None and not dry_run:
        raise typer.BadParameter("say where the annotations go, or add --dry-run", param_hint="--out")
    languages: tuple[Language, ...] = ("zh", "en") if language == "both" else (language,)
    filters = Filters(
        min_side=min_side,
        max_side=max_side,
        max_aspect=max_aspect,
        duplicates=duplicates,
        min_confidence=min_confidence,
        min_score=min_score,
        in_domain=in_domain,
    )
    request = DatasetRequest.model_validate(
        {
            "source": absolute(source),
            "source_format": source_format,
            "source_root": source_root and absolute(source_root),
            "image_column": image_column,
            "caption_column": caption_column,
            "encoding": encoding,
            "destination": destination and absolute(destination),
            "destination_format": destination_format,
            "tasks": task or [Kind.DESCRIBE],
            "languages": languages,
            "styles": style or ["short"],
            "prompt": prompt,
            "max_tokens": max_tokens,
            "candidates": candidates,
            "filters": filters,
            "dry_run": dry_run,
            "overwrite": overwrite,
            "priority": priority,
            "shard_size": shard_size,
            "max_attempts": max_attempts,
        }
    )
    with place(context).client() as client:
        dataset = client.datasets.submit(request)
        if no_wait:
            print_json(dataset.model_dump(mode="json")) if as_json else out.print(str(dataset.id))
            return
        _follow(client, dataset, as_json)


@datasets.command("ls")
def list_datasets(context: typer.Context, as_json: AsJson = False) -> None:
    """List data sets, newest first."""
    with place(context).client() as client:
        found = list(client.datasets.iter())
    if as_json:
        for dataset in found:
            print_json(dataset.model_dump(mode="json"))
    elif found:
        shown.print_datasets(found)
    else:
        err.print("no data sets")


@datasets.command()
def show(context: typer.Context, ids: Ids, as_json: AsJson = False) -> None:
    """Show everything about data sets."""
    with place(context).client() as client:
        for id in ids:
            dataset = client.datasets.get(id)
            print_json(dataset.model_dump(mode="json")) if as_json else shown.print_dataset(dataset)


@datasets.command()
def watch(context: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """Follow a data set until it is over."""
    with place(context).client() as client:
        _follow(client, client.datasets.get(id), as_json)


@datasets.command()
def pause(context: typer.Context, ids: Ids) -> None:
    """Pause data sets: no further shard starts, and running shards are given back."""
    with place(context).client() as client:
        for id in ids:
            _say(client.datasets.pause(id))


@datasets.command()
def resume(context: typer.Context, ids: Ids) -> None:
    """Resume data sets that were paused."""
    with place(context).client() as client:
        for id in ids:
            _say(client.datasets.resume(id))


@datasets.command()
def cancel(context: typer.Context, ids: Ids) -> None:
    """Cancel data sets; finished annotations are kept, and `retry` continues from there."""
    with place(context).client() as client:
        for id in ids:
            _say(client.datasets.cancel(id))


@datasets.command()
def rm(context: typer.Context, ids: Ids) -> None:
    """Delete data sets that are over, with their reviews; sources and exported files stay."""
    with place(context).client() as client:
        for id in ids:
            client.datasets.delete(id)
            out.print(f"{id} deleted")


@datasets.command()
def priority(
    context: typer.Context, id: Id, value: Annotated[int, typer.Argument(metavar="0-9", min=0, max=9)]
) -> None:
    """Change the priority of data sets."""
    with place(context).client() as client:
        _say(client.datasets.prioritize(id, value))


@datasets.command()
def retry(
    context: typer.Context,
    id: Id,
    failed: Annotated[
        bool, typer.Option("--failed", help="Retry only the images that failed, not those that a cancel left undone.")
    ] = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Run the images again that failed or that a cancel left undone; then export again."""
    with place(context).client() as client:
        dataset = client.datasets.retry(id, failed_only=failed)
        if no_wait:
            _say(dataset)
        else:
            _follow(client, dataset, as_json)


@datasets.command()
def export(
    context: typer.Context,
    id: Id,
    destination: Destination,
    destination_format: Format = "jsonl",
    overwrite: Overwrite = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Export the annotations and reviews of a data set to any destination and in any format."""
    request = ExportRequest(
        destination=absolute(destination), destination_format=destination_format, overwrite=overwrite
    )
    with place(context).client() as client:
        dataset = client.datasets.export(id, request)
        if no_wait:
            _say(dataset)
        else:
            _follow(client, dataset, as_json, exporting=True)


def absolute(where: str) -> str:
    """Make a path absolute, because the servers have another working folder than the user."""
    return where if "://" in where else str(Path(where).expanduser().absolute())


def _say(dataset: Dataset) -> None:
    out.print(f"{dataset.id} {'paused' if dataset.paused else dataset.status}")


def _follow(client: Client, dataset: Dataset, as_json: bool, exporting: bool = False) -> None:
    try:
        dataset = shown.follow(client, dataset)
    except KeyboardInterrupt:
        err.print(f"\nno longer watching, but the run continues; see: tuwen datasets watch {dataset.id}")
        raise typer.Exit(130) from None
    except Unavailable:
        err.print(f"no longer watching, but the run continues; see: tuwen datasets watch {dataset.id}")
        raise
    if as_json:
        print_json(dataset.model_dump(mode="json"))
    else:
        shown.print_outcome(dataset, exporting=exporting)
    if dataset.error is not None:
        err.print(f"[red]{dataset.error.code}[/] {escape(dataset.error.detail)}")
    # A dry run succeeds even if it finds broken images: finding them is its purpose. An export succeeds once it is
    # written: those images failed in the run before it.
    failed = dataset.progress.failed and not (dataset.request.dry_run or exporting)
    if dataset.status is not DatasetStatus.SUCCEEDED or failed:
        raise typer.Exit(1)
