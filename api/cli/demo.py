"""`tuwen demo`: the whole system at work for a minute, in a separate folder and on separate ports.

For each prompt it draws several candidates, scores each against the prompt, and keeps the best: the typical use of the
queue. Then it describes, recognises and matches every picture, one of which comes from a file.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.markup import escape
from rich.text import Text

from api.cli import terminal
from api.cli.terminal import err, out
from api.embedded import folders
from api.embedded.stack import System
from shared.settings import Settings
from tuwen.client import Client
from tuwen.errors import ConfigurationError, EngineError
from tuwen.jobs import (
    DescribeInput,
    GenerateInput,
    ImageSource,
    Job,
    JobInput,
    JobRequest,
    MatchInput,
    MatchResult,
    RecognizeInput,
    Status,
)

PROMPTS = ("一只黑色的猫在草地上跳跃", "a black cat jumping on the grass")
CANDIDATES = 4
SAMPLE = Path(__file__).with_name("sample.png")
SAMPLE_TEXT = "a white rabbit running to the left of a red car on the grass"


@dataclass(frozen=True, slots=True)
class DemoPicture:
    title: str
    path: Path
    source: ImageSource


def run(folder: Path) -> None:
    """Start a system, demonstrate it, and stop it.

    Raises:
        ConfigurationError: the system did not start, or left a process behind.
        EngineError: a job did not succeed.
    """
    folder = folder.absolute()
    folders.close(folder.parent)  # that of `tuwen up`, inside which the demo's is
    # The environment is ignored here: nothing outside this folder and this machine takes part.
    settings = Settings(
        data_dir=folder,
        storage_url=f"file://{folder / 'objects'}",
        host="127.0.0.1",
        auth="open",
        port=0,
        flower_port=0,
    )
    err.print("[bold]Tuwen 图文[/]: starting everything on this machine")
    with terminal.FamilyView() as view, System(settings, view.tell) as system, Client(system.url) as client:
        terminal.print_rows({"API docs": f"{system.url}/docs", "Flower": system.flower_url})
        pictures = [*_draw(client, folder / "images"), _upload_sample(client)]
        _ask(client, pictures)
        family = psutil.Process().children(recursive=True)
    _check_gone(family)
    err.print(f"\n[green]✓[/] stopped; all of its {len(family)} processes have ended")
    err.print("  To keep it running, with the API's docs on port 8000 and Flower on 5555: [bold]tuwen up[/]")


def _draw(client: Client, folder: Path) -> list[DemoPicture]:
    """Draw candidates for each prompt and return the best one of each."""
    err.print(f"\nDrawing {' and '.join(PROMPTS)}, {CANDIDATES} candidates each")
    prompts = [prompt for prompt in PROMPTS for _ in range(CANDIDATES)]
    drawn = [
        client.result_bytes(job) for job in _run_jobs(client, [GenerateInput(prompt=prompt) for prompt in prompts])
    ]
    sources = [ImageSource(file_id=client.upload(data).id) for data in drawn]
    questions = [MatchInput(image=image, text=prompt) for image, prompt in zip(sources, prompts, strict=True)]
    scores = [_score(job) for job in _run_jobs(client, questions)]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    pictures = []
    for first in range(0, len(prompts), CANDIDATES):
        best = max(range(first, first + CANDIDATES), key=scores.__getitem__)
        path = folder / f"{prompts[best]}.png"
        path.write_bytes(drawn[best])
        pictures.append(DemoPicture(prompts[best], path, sources[best]))
    return pictures


def _upload_sample(client: Client) -> DemoPicture:
    return DemoPicture("a picture file", SAMPLE, ImageSource(file_id=client.upload(SAMPLE.read_bytes()).id))


def _ask(client: Client, pictures: Sequence[DemoPicture]) -> None:
    """Describe, recognise and match each picture, and print the results."""
    texts = (*PROMPTS, SAMPLE_TEXT)
    err.print(f"\nDescribing, recognising and matching {len(pictures)} pictures")
    answers = _run_jobs(client, [question for picture in pictures for question in _questions(picture.source, texts)])
    each = len(answers) // len(pictures)
    for number, picture in enumerate(pictures):
        chinese, english, recognized, *matches = answers[number * each : (number + 1) * each]
        out.print(f"\n[bold]{escape(picture.title)}[/]  [dim]{escape(terminal.short_path(picture.path))}[/]")
        if out.color_system in ("256", "truecolor"):
            out.print(thumbnail(picture.path.read_bytes()))
        _print_lines("zh", terminal.outcome(chinese))
        _print_lines("en", terminal.outcome(english))
        _print_lines("objects", terminal.outcome(recognized))
        fits = [f"{_score(job):.2f}  {text}" for job, text in zip(matches, texts, strict=True)]
        _print_lines("match", "\n".join(fits))


def _questions(image: ImageSource, texts: Iterable[str]) -> list[JobInput]:
    return [
        DescribeInput(image=image, language="zh"),
        DescribeInput(image=image, language="en"),
        RecognizeInput(image=image),
        *(MatchInput(image=image, text=text) for text in texts),
    ]


def _run_jobs(client: Client, inputs: Iterable[JobInput]) -> list[Job]:
    """Run the jobs and return them, in the order of `inputs`. Raises EngineError when one does not succeed."""
    jobs = client.submit_many([JobRequest(input=each) for each in inputs])
    over = list(terminal.wait_for(client, jobs))
    for job in over:
        if job.status is not Status.SUCCEEDED:
            raise EngineError(f"{job.kind} job {job.id} {job.status}: {terminal.outcome(job)}")
    return over


def _score(job: Job) -> float:
    if not isinstance(job.result, MatchResult):
        raise EngineError(f"job {job.id} has no score")
    return job.result.score


def _print_lines(label: str, text: str) -> None:
    for line in text.splitlines():
        out.print(f"  [dim]{label:<8}[/] {escape(line)}")
        label = ""


def thumbnail(data: bytes, width: int = 36) -> Text:
    """Draw the image in coloured half blocks, two pixels per character."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    height = round(width * image.height / image.width) // 2 * 2
    pixels = np.asarray(image.resize((width, height)))
    lines = []
    for y in range(0, height, 2):
        line = Text("  ")
        for x in range(width):
            upper, lower = (bytes(pixels[row, x]).hex() for row in (y, y + 1))
            line.append("▀", style=f"#{upper} on #{lower}")
        lines.append(line)
    return Text("\n").join(lines)


def _check_gone(family: Iterable[psutil.Process]) -> None:
    left = [process for process in family if _lives(process)]
    if left:
        lines = ", ".join(f"{process.pid} {process.name()}" for process in left)
        raise ConfigurationError(f"processes are still running after the stop: {lines}")


def _lives(process: psutil.Process) -> bool:
    try:
        # The process that adopts orphans may reap them late; in some containers no process does.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
