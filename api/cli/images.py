"""`tuwen generate | describe | recognize | match`: submit jobs, wait, show the results."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from api.cli import terminal
from api.cli.place import place
from api.cli.terminal import err, out
from tuwen.client import Client
from tuwen.errors import InvalidRequest, PayloadTooLarge, Unavailable
from tuwen.jobs import (
    DescribeInput,
    GenerateInput,
    ImageSource,
    Job,
    JobInput,
    JobRequest,
    Language,
    MatchInput,
    RecognizeInput,
    Status,
    Style,
)

app = typer.Typer()
PANEL = "Jobs"
STANDARD_INPUT = STANDARD_OUTPUT = "-"
UPLOADS = 100
MOST_CANDIDATES = 16

Images = Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files, URLs, or - for standard input.")]
Model = Annotated[str | None, typer.Option(help="Model; by default that of the installation.")]
Priority = Annotated[int, typer.Option(min=0, max=9, help="Priority: 9 is most urgent, 0 is bulk work.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job ids and return at once.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print jobs as JSON, one a line.")]


@app.command(rich_help_panel=PANEL)
def generate(
    context: typer.Context,
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="Description of the image to draw, in Chinese or English.")
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="File, folder/, or - for standard output; by default named by the prompt."),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="Images to draw for each prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the first image; each further image adds 1.")] = None,
    width: Annotated[int | None, typer.Option(min=16, max=4096, help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=16, max=4096, help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=500, help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=100, help="How strictly to follow the prompt.")] = None,
    negative: Annotated[str, typer.Option(help="Description of things that the image should not show.")] = "",
    keep: Annotated[
        Literal["best", "all"] | None,
        typer.Option(help="Score the images of a prompt against it, and keep the best, or all with their scores."),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Draw more rounds until an image reaches this score.")
    ] = None,
    model: Model = None,
    priority: Priority = 5,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Draw images from prompts."""
    judged = keep is not None or min_score is not None
    if judged and count > MOST_CANDIDATES:
        raise typer.BadParameter(f"at most {MOST_CANDIDATES} images of a prompt are scored together", param_hint="-n")
    if keep == "all" and min_score is not None:
        raise typer.BadParameter("with --min-score only the best is kept", param_hint="--keep")
    inputs = [
        GenerateInput(
            prompt=prompt,
            negative_prompt=negative,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            seed=None if seed is None else seed + number,
            candidates=count if judged else 1,
            keep=keep or "best",
            min_score=min_score,
        )
        for prompt in prompts
        for number in range(1 if judged else count)
    ]
    shown = count if keep == "all" else 1
    files = image_files([each.prompt for each in inputs for _ in range(shown)], output)
    manner = _Manner(model, priority, no_wait, as_json and output != STANDARD_OUTPUT)
    named = [[str(file) for file in files[start : start + shown]] for start in range(0, len(files), shown)]
    labels: list[dict[str, Any]] = [{"file": each[0]} if shown == 1 else {"files": each} for each in named]
    with place(context).client() as client:

        def save(file: Path, data: bytes) -> None:
            if output == STANDARD_OUTPUT:
                sys.stdout.buffer.write(data)
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            if not as_json:
                out.print(escape(terminal.short_path(file)))

        def keep_images(index: int, job: Job) -> None:
            for number, file in enumerate(files[index * shown : (index + 1) * shown]):
                save(file, client.result_bytes(job, candidate=number if shown > 1 else None))
            if not as_json:
                for line in terminal.outcome(job).splitlines():
                    err.print(f"  [dim]{escape(line)}[/]")

        jobs = client.submit_many(manner.requests(inputs))
        _exit(_follow(client, jobs, labels, keep_images, manner))


@app.command(rich_help_panel=PANEL)
def describe(
    context: typer.Context,
    images: Images,
    language: Annotated[Literal["zh", "en", "both"], typer.Option("-l", "--language")] = "en",
    style: Annotated[Style, typer.Option()] = "short",
    prompt: Annotated[str, typer.Option(help="Instruction or question, for models that take a prompt.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, max=2048)] = 64,
    rerank: Annotated[
        int, typer.Option(min=1, max=16, help="Captions to write; the one that matches best is kept.")
    ] = 1,
    model: Model = None,
    priority: Priority = 5,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Describe images in words."""
    languages: tuple[Language, ...] = ("zh", "en") if language == "both" else (language,)

    def questions(image: ImageSource) -> list[JobInput]:
        return [
            DescribeInput(image=image, language=each, style=style, prompt=prompt, max_tokens=max_tokens, rerank=rerank)
            for each in languages
        ]

    _ask(context, images, questions, _Manner(model, priority, no_wait, as_json))


@app.command(rich_help_panel=PANEL)
def recognize(
    context: typer.Context,
    images: Images,
    model: Model = None,
    priority: Priority = 5,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Name the objects in images, their attributes and actions."""
    _ask(context, images, lambda image: [RecognizeInput(image=image)], _Manner(model, priority, no_wait, as_json))


@app.command(rich_help_panel=PANEL)
def match(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to compare, in Chinese or English.")],
    images: Images,
    report: Annotated[
        bool, typer.Option("--report", help="Also say which objects, attributes and actions of the text are found.")
    ] = False,
    model: Model = None,
    priority: Priority = 5,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Score from 0 to 1 how well a text fits images."""

    def questions(image: ImageSource) -> list[JobInput]:
        return [MatchInput(image=image, text=text, report=report)]

    _ask(context, images, questions, _Manner(model, priority, no_wait, as_json))


@dataclass(frozen=True, slots=True)
class _Manner:
    """Values of the options that the four commands share."""

    model: str | None
    priority: int
    no_wait: bool
    as_json: bool

    def requests(self, inputs: Iterable[JobInput]) -> list[JobRequest]:
        return [JobRequest(input=each, model=self.model, priority=self.priority) for each in inputs]


def _ask(
    context: typer.Context,
    images: Sequence[str],
    questions: Callable[[ImageSource], Sequence[JobInput]],
    manner: _Manner,
) -> None:
    """Submit `questions` for each image; a refused image does not prevent the others from being submitted."""
    _require_readable(images)
    jobs: list[Job] = []
    asked: list[str] = []
    refused = False
    with place(context).client() as client:
        # Submitted in groups, so that workers start on the first while the others are still being uploaded.
        for start in range(0, len(images), UPLOADS):
            inputs: list[JobInput] = []
            for image in images[start : start + UPLOADS]:
                try:
                    found = questions(_source(client, image))
                except (InvalidRequest, PayloadTooLarge) as error:
                    err.print(f"[red]refused[/] {escape(image)}: {escape(str(error))}")
                    refused = True
                    continue
                inputs += found
                asked += [image] * len(found)
            jobs += client.submit_many(manner.requests(inputs)) if inputs else []

        def show(index: int, job: Job) -> None:
            label = f"[dim]{escape(asked[index])}:[/] " if len(images) > 1 else ""
            for line in () if manner.as_json else terminal.outcome(job).splitlines():
                out.print(label + escape(line))

        failed = _follow(client, jobs, [{"image": image} for image in asked], show, manner)
    _exit(failed or refused)


def _follow(
    client: Client,
    jobs: Sequence[Job],
    labels: Sequence[dict[str, Any]],
    show: Callable[[int, Job], None],
    manner: _Manner,
) -> bool:
    """Wait with a progress bar and show each success; return whether a job did not succeed.

    As JSON, each job also has its label.
    """
    if manner.no_wait:
        for label, job in zip(labels, jobs, strict=True):
            terminal.print_json(label | job.model_dump(mode="json")) if manner.as_json else out.print(str(job.id))
        return False
    failed = False
    try:
        for index, job in enumerate(terminal.wait_for(client, jobs)):
            if manner.as_json:
                terminal.print_json(labels[index] | job.model_dump(mode="json"))
            if job.status is Status.SUCCEEDED:
                show(index, job)
            else:
                failed = True
                err.print(f"[red]{job.status}[/] {job.id}  {escape(terminal.outcome(job))}")
    except KeyboardInterrupt:
        err.print()
        _say_they_go_on(jobs)
        raise typer.Exit(130) from None
    except Unavailable:
        _say_they_go_on(jobs)
        raise
    return failed


def _say_they_go_on(jobs: Sequence[Job]) -> None:
    err.print(f"no longer waiting, but the jobs continue; see: tuwen jobs watch {jobs[-1].id}")


def _exit(failed: bool) -> None:
    if failed:
        raise typer.Exit(1)


def _require_readable(images: Iterable[str]) -> None:
    """Check all images before anything is submitted: a file that cannot be read is most likely a typing error."""
    for image in images:
        if not _is_url(image) and image != STANDARD_INPUT:
            try:
                Path(image).open("rb").close()
            except IsADirectoryError as error:
                raise InvalidRequest(
                    f"{image} is a folder: name its images, or annotate all of it with `tuwen annotate`"
                ) from error
            except OSError as error:
                raise InvalidRequest(f"cannot read {image}: {error.strerror}") from error


def _source(client: Client, image: str) -> ImageSource:
    if _is_url(image):
        return ImageSource(url=image)
    return client.source(sys.stdin.buffer.read() if image == STANDARD_INPUT else Path(image))


def _is_url(image: str) -> bool:
    return image.startswith(("http://", "https://"))


def image_files(prompts: Sequence[str], output: str | None) -> list[Path]:
    """Choose a file for each prompt. Only the file that `output` names itself is ever overwritten."""
    # Handled as text, because a Path forgets the slash that tells a new folder from a file.
    in_folder = output is None or output.endswith("/") or Path(output).is_dir()
    files: list[Path] = []
    for prompt in prompts:
        first = Path(output or "", f"{_file_name(prompt)}.png") if in_folder else Path(output or "")
        path, number = first, 2
        while path in files or (path.exists() and (in_folder or path != first)):
            path, number = first.with_stem(f"{first.stem}-{number}"), number + 1
        files.append(path)
    return files


def _file_name(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt).strip("-")[:60] or "image"
