"""The engine process for real: spawned, killed, stopped, starved. Only the models in it are fake."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shared.model_specs import parse_models
from tests.support.fakes import painted, seed_colour
from tests.support.waiting import PATIENT, eventually
from tuwen.engine import DescribeItem, GenerateItem, Item, MatchItem, Picture, RecognizeItem
from tuwen.errors import EngineCrashed, EngineError, EngineHung, EngineStartFailed, OutOfMemory
from tuwen.jobs import DescribeResult, Kind, MatchResult, RecognizeResult
from workers.inference.batcher import Batcher
from workers.inference.catalog import engine_path, is_pinned
from workers.inference.cores import usable_cores
from workers.inference.devices import visible_device
from workers.inference.host import LONGEST_PART
from workers.inference.messages import SLOTS
from workers.inference.process import EngineProcess

ROOT = Path(__file__).parents[3]
NULL = {
    Kind.GENERATE: "import:tests.support.fakes:NullGenerator",
    Kind.DESCRIBE: "import:tests.support.fakes:NullDescriber",
    Kind.RECOGNIZE: "import:tests.support.fakes:NullRecognizer",
    Kind.MATCH: "import:tests.support.fakes:NullMatcher",
}


def generator(name: str = "NullGenerator") -> dict[Kind, str]:
    return {Kind.GENERATE: f"import:tests.support.fakes:{name}"}


def asked(*prompts: str) -> list[GenerateItem]:
    return [GenerateItem(prompt, seed=number) for number, prompt in enumerate(prompts)]


def noting(event: threading.Event) -> Callable[[int], bool]:
    """A question for cancellations that cancels nothing and notes that it was asked: a batch is running."""

    def cancelled(index: int) -> bool:
        event.set()
        return False

    return cancelled


def gone(pid: int) -> bool:
    """Whether the process has ended; an orphan may stay a zombie where nobody reaps them."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def engine() -> Iterator[Callable[..., EngineProcess]]:
    """Makes started engine processes, with short patience, and ends them after the test."""
    made: list[EngineProcess] = []

    def make(specs: dict[Kind, str] | None = None, batch_timeout: float = PATIENT) -> EngineProcess:
        made.append(EngineProcess(specs or generator(), "cpu", PATIENT, batch_timeout))
        made[-1].start()
        return made[-1]

    yield make
    for process in made:
        process.stop()


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[EngineProcess]:
    """A process of all four kinds, shared by the tests that do it no harm."""
    process = EngineProcess(NULL, "cpu", PATIENT, PATIENT)
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def puppet() -> Iterator[EngineProcess]:
    """A process whose engine does what the prompt says in Python; for what leaves it alive."""
    process = EngineProcess(generator("Puppet"), "cpu", PATIENT, PATIENT)
    process.start()
    yield process
    process.stop()


# ── answers ───────────────────────────────────────────────────────────────────────────────────────


def test_each_kind_is_warm_and_answers_in_order(shared_engine: EngineProcess) -> None:
    assert shared_engine.alive
    assert shared_engine.device_name == "cpu"
    expected = {kind: {spec: f"null-{spec.split('Null')[1].lower()}"} for kind, spec in NULL.items()}
    assert shared_engine.revisions == expected
    pictures = shared_engine.run(Kind.GENERATE, asked("a", "b", "c"))
    assert [tuple(picture.pixels[7, 7].tolist()) for picture in pictures if isinstance(picture, Picture)] == [
        seed_colour(0),
        seed_colour(1),
        seed_colour(2),
    ]
    gradient = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)
    [description] = shared_engine.run(Kind.DESCRIBE, [DescribeItem(gradient, language="zh")])
    assert isinstance(description, DescribeResult)
    assert description.text == "颜色 16-18-18"
    [recognition] = shared_engine.run(Kind.RECOGNIZE, [RecognizeItem(gradient)])
    assert isinstance(recognition, RecognizeResult)
    assert shared_engine.run(Kind.MATCH, [MatchItem(gradient, "cat")]) == [MatchResult(score=0.25)]


def test_megabytes_pass_both_ways(shared_engine: EngineProcess) -> None:
    large = [RecognizeItem(np.full((1024, 1024, 3), number, np.uint8)) for number in range(4)]
    assert len(shared_engine.run(Kind.RECOGNIZE, large)) == 4


def test_the_limit_is_the_engines(shared_engine: EngineProcess) -> None:
    assert shared_engine.limit(Kind.GENERATE, asked("a")[0]) == 16


@pytest.mark.parametrize(("promised", "limit"), [(1e9, SLOTS), (7, 7), (0, 1), (-3, 1)])
def test_the_limit_is_at_least_one_and_no_more_than_there_are_cancellation_flags(
    puppet: EngineProcess, promised: float, limit: int
) -> None:
    assert puppet.limit(Kind.GENERATE, GenerateItem("pass", 0, guidance=promised)) == limit


def test_a_kind_that_is_not_served_is_refused_and_harms_nothing(puppet: EngineProcess) -> None:
    with pytest.raises(EngineError, match="no engine that can match"):
        puppet.run(Kind.MATCH, [MatchItem(painted("nothing"), "cat")])
    assert puppet.run(Kind.GENERATE, asked("pass"))


# ── failures inside a batch ───────────────────────────────────────────────────────────────────────


def test_an_item_that_fails_alone_leaves_the_others_their_answers(shared_engine: EngineProcess) -> None:
    first, rejected, last = shared_engine.run(Kind.GENERATE, asked("a", "reject", "b"))
    assert isinstance(first, Picture)
    assert isinstance(rejected, EngineError)
    assert isinstance(last, Picture)


def test_what_nobody_foresaw_is_logged_in_full_and_told_in_brief(
    shared_engine: EngineProcess, caplog: pytest.LogCaptureFixture
) -> None:
    pid = shared_engine.pid
    with pytest.raises(EngineError) as caught:
        shared_engine.run(Kind.GENERATE, asked("fail"))
    assert type(caught.value) is EngineError
    assert str(caught.value) == "the generate model failed (ZeroDivisionError)"
    assert "Traceback" in caplog.text
    assert "secret of the engine" in caplog.text
    assert shared_engine.run(Kind.GENERATE, asked("a"))
    assert shared_engine.pid == pid


@pytest.mark.parametrize("kind", list(Kind))
def test_not_a_number_never_gets_out(shared_engine: EngineProcess, kind: Kind) -> None:
    pixels = painted("nan")
    items: dict[Kind, Item] = {
        Kind.GENERATE: GenerateItem("nan", 1),
        Kind.DESCRIBE: DescribeItem(pixels),
        Kind.RECOGNIZE: RecognizeItem(pixels),
        Kind.MATCH: MatchItem(pixels, "nan"),
    }
    try:
        [answer] = shared_engine.run(kind, [items[kind]])
    except EngineError:
        return
    assert isinstance(answer, EngineError)


@pytest.mark.parametrize("answers", ["[]", "None", "['a picture']", "[errors.EngineError(lambda: 0)]"])
def test_wrong_answers_of_an_engine_are_its_error(puppet: EngineProcess, answers: str) -> None:
    with pytest.raises(EngineError):
        puppet.run(Kind.GENERATE, asked(f"answers = {answers}"))
    assert isinstance(puppet.run(Kind.GENERATE, asked("pass"))[0], Picture)


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError()",
        "type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory. Tried to allocate 2 GiB')",
        "RuntimeError('CUDA error: out of memory')",
        "RuntimeError('[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can\\'t allocate memory')",
        "RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)')",
        "errors.OutOfMemory('said so itself')",
    ],
)
def test_every_shape_of_out_of_memory_is_recognised(puppet: EngineProcess, error: str) -> None:
    pid = puppet.pid
    with pytest.raises(OutOfMemory):
        puppet.run(Kind.GENERATE, asked(f"raise {error}"))
    assert puppet.run(Kind.GENERATE, asked("pass"))
    assert puppet.pid == pid


def test_torchs_own_out_of_memory_is_recognised(engine: Callable[..., EngineProcess]) -> None:
    process = engine(generator("MemoryHungryGenerator"))
    with pytest.raises(OutOfMemory):
        process.run(Kind.GENERATE, asked(*"abcd"))
    assert len(process.run(Kind.GENERATE, asked(*"abc"))) == 3


# ── death ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("trick", "told"),
    [("crash", "killed by SIGKILL"), ("exit", "exit code 3"), ("lose", "device-side assert")],
)
def test_a_process_that_dies_under_a_batch_is_named_and_replaced(
    engine: Callable[..., EngineProcess], trick: str, told: str
) -> None:
    process = engine()
    first = process.pid
    assert first is not None
    with pytest.raises(EngineCrashed, match=told):
        process.run(Kind.GENERATE, asked("a", trick))
    assert not process.alive
    assert not psutil.pid_exists(first), "a zombie is left"
    assert process.pid is None
    with pytest.raises(EngineCrashed, match="not running"):
        process.run(Kind.GENERATE, asked("a"))
    process.start()
    assert process.pid != first
    assert process.run(Kind.GENERATE, asked("a"))


def test_a_process_killed_from_outside_is_noticed_while_idle_and_while_busy(
    engine: Callable[..., EngineProcess],
) -> None:
    process = engine()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not process.alive)
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        process.run(Kind.GENERATE, asked("a"))
    process.start()
    running = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(process.run, Kind.GENERATE, asked("sleep 60"), cancelled=noting(running))
        assert running.wait(PATIENT)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(EngineCrashed, match="SIGKILL"):
            run.result(PATIENT)


def test_death_is_noticed_although_a_fork_holds_the_pipe(engine: Callable[..., EngineProcess], tmp_path: Path) -> None:
    process = engine(generator("Puppet"))
    told = tmp_path / "fork"
    prompt = f"""if True:
        import os, time
        fork = os.fork()
        if fork == 0:
            time.sleep(3600)
        open({str(told)!r}, "w").write(str(fork))
        os._exit(7)
    """
    try:
        with pytest.raises(EngineCrashed, match="exit code 7"):
            process.run(Kind.GENERATE, asked(prompt))
    finally:
        os.kill(int(told.read_text()), signal.SIGKILL)


def test_silence_is_a_hang_and_ends_the_process(engine: Callable[..., EngineProcess]) -> None:
    process = engine(batch_timeout=2.0)
    assert process.pid is not None
    pid = process.pid
    with pytest.raises(EngineHung):
        process.run(Kind.GENERATE, asked("hang"))
    assert not psutil.pid_exists(pid)
    process.start()
    assert process.run(Kind.GENERATE, asked("a"))


def test_progress_is_a_sign_of_life(engine: Callable[..., EngineProcess]) -> None:
    """Ten steps of 0.5 s take longer than the 3 s of silence that would be a hang."""
    process = engine(batch_timeout=3.0)
    seen: list[tuple[int, int]] = []
    assert len(process.run(Kind.GENERATE, asked("sleep 5"), lambda *told: seen.append(told[:2]))) == 1
    assert seen == [(step, 10) for step in range(1, 11)]


def test_what_there_is_so_far_is_asked_for_those_items_that_are_watched(
    engine: Callable[..., EngineProcess],
) -> None:
    process = engine(generator("Puppet"))
    prompt = """
import numpy, time
def so_far(index):
    return {1: "half", 2: numpy.zeros((128, 2, 3), numpy.uint8), 3: "long" * 10**5, 4: None}[index]  # not 0, not 5
for step in range(1, 7):
    time.sleep(0.2)
    run.progress(step, 6, so_far)
"""
    told: list[dict[int, Any]] = []
    process.run(
        Kind.GENERATE,
        [GenerateItem(prompt, seed) for seed in range(6)],
        lambda _step, _steps, parts: told.append(dict(parts)),
        watched=lambda index: 1 <= index <= 4,
    )
    assert len(told) >= 2  # so much is told more rarely than in every step
    for parts in told:
        assert parts.keys() == {1, 2, 3}
        assert parts[1] == "half"
        assert parts[2].shape == (128, 2, 3)
        assert parts[3] == "long" * (LONGEST_PART // 4)


def test_who_begins_to_watch_while_a_batch_runs_is_told_at_the_next_step(engine: Callable[..., EngineProcess]) -> None:
    process = engine(generator("Puppet"))
    prompt = "import time\nfor step in range(1, 9): time.sleep(0.2); run.progress(step, 8, lambda _: f'{step} words')"
    told: list[tuple[int, dict[int, Any]]] = []
    process.run(
        Kind.GENERATE,
        asked(prompt),
        lambda step, _steps, parts: told.append((step, dict(parts))),
        watched=lambda _: any(step == 4 for step, _ in told),
    )
    assert all(not parts for step, parts in told if step <= 4)
    assert told[-1] == (8, {0: "8 words"})


def test_a_preview_that_is_no_small_picture_fails_its_batch(engine: Callable[..., EngineProcess]) -> None:
    process = engine(generator("Puppet"))
    prompt = "import numpy, time\ntime.sleep(0.2)\nrun.progress(1, 2, lambda _: numpy.zeros((129, 8, 3), numpy.uint8))"
    with pytest.raises(EngineError, match="TypeError"):
        process.run(Kind.GENERATE, asked(prompt), watched=lambda _: True)


@pytest.mark.parametrize("size", [1, 4096], ids=["small", "larger than the pipe"])
def test_a_stopped_process_is_a_hang_even_in_the_middle_of_a_message(
    engine: Callable[..., EngineProcess], size: int
) -> None:
    process = engine({Kind.RECOGNIZE: NULL[Kind.RECOGNIZE]}, batch_timeout=0.5)
    assert process.pid is not None
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineHung):
        process.run(Kind.RECOGNIZE, [RecognizeItem(np.zeros((size, 256, 3), np.uint8))])
    assert not psutil.pid_exists(pid)


def test_a_callback_that_fails_does_not_leave_its_answer_for_the_next_batch(
    engine: Callable[..., EngineProcess],
) -> None:
    process = engine(generator("SlowGenerator"))

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        process.run(Kind.GENERATE, asked("a"), fail)
    assert not process.alive


# ── starting ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("BrokenAtStart", "FileNotFoundError: no weights for cpu"),
        ("BrokenAtWarmUp", "ZeroDivisionError"),
        ("DeadAtStart", "died while starting: the process was killed by SIGKILL"),
        ("Nowhere", "has no attribute 'Nowhere'"),
        ("NullDescriber", "not an engine that can generate"),
        ("painted", "TypeError"),
    ],
)
def test_a_start_that_fails_names_the_engine_and_the_reason(name: str, told: str) -> None:
    process = EngineProcess({**NULL, **generator(name)}, "cpu", PATIENT, PATIENT)
    with pytest.raises(EngineStartFailed) as caught:
        process.start()
    assert f"generate engine 'import:tests.support.fakes:{name}'" in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not process.alive


def test_the_log_has_the_traceback_of_a_failed_start(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineStartFailed):
        EngineProcess(generator("BrokenAtStart"), "cpu", PATIENT, PATIENT).start()
    assert "Traceback" in caplog.text


def test_a_module_that_is_not_there_is_named() -> None:
    process = EngineProcess({Kind.MATCH: "import:no.such.module:Engine"}, "cpu", PATIENT, PATIENT)
    with pytest.raises(EngineStartFailed, match=r"match engine .*ModuleNotFoundError: No module named 'no'"):
        process.start()


def test_a_start_that_takes_too_long_is_ended() -> None:
    process = EngineProcess(generator("SleepyAtStart"), "cpu", 1.5, PATIENT)
    with pytest.raises(EngineStartFailed, match=r"made no progress for 1\.5 s of its start"):
        process.start()
    assert not process.alive


@pytest.mark.parametrize("spec", ["", "pickle:weights.pt", "import:", "import:module", "import::Class", "Builtin"])
def test_only_known_ways_to_name_an_engine_are_allowed(spec: str) -> None:
    with pytest.raises(EngineStartFailed, match=r"'builtin', 'import:package\.module:Class'"):
        EngineProcess({Kind.GENERATE: spec}, "cpu").start()


@pytest.mark.parametrize("kind", list(Kind))
def test_builtin_names_an_engine_of_each_kind(kind: Kind) -> None:
    module, name = engine_path(kind, parse_models("builtin")[0])
    assert module == "workers.engines.builtin"
    assert name.lower().startswith(f"builtin{kind.value[:7]}")


@pytest.mark.parametrize(
    ("device", "inherited", "expected"),
    [
        ("cpu", None, ("", "cpu")),
        ("cpu", "0,1", ("", "cpu")),
        ("cuda", None, ("0", "cuda:0")),
        ("cuda:0", None, ("0", "cuda:0")),
        ("cuda:3", None, ("3", "cuda:0")),
        ("cuda:1", "4,5", ("5", "cuda:0")),
        ("cuda:1", "GPU-ab12, MIG-cd34", ("MIG-cd34", "cuda:0")),
    ],
)
def test_one_device_is_visible(device: str, inherited: str | None, expected: tuple[str, str]) -> None:
    assert visible_device(device, inherited) == expected


@pytest.mark.parametrize(
    ("device", "inherited"),
    [("cuda:2", "4,5"), ("cuda", ""), ("gpu", None), ("cuda:x", None), ("cuda:-1", None), ("", None), ("cuda:²", None)],
)
def test_a_device_that_is_not_there_is_refused(device: str, inherited: str | None) -> None:
    with pytest.raises(EngineStartFailed, match=r"no device|unknown device"):
        visible_device(device, inherited)


@pytest.mark.parametrize(
    ("options", "stays"),
    [("", False), ("?pinned=1", True), ("?compile=default", True), ("?compile=default&pinned=0", False)],
)
def test_what_took_minutes_to_compile_is_not_evicted(options: str, stays: bool) -> None:
    [spec] = parse_models(f"transformers:/models/blip{options}")
    assert is_pinned(spec) is stays


OWN_ENGINE = """
import os, sys
from tests.support.fakes import NullGenerator

seen = os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("OMP_NUM_THREADS"), "torch" in sys.modules

class Own(NullGenerator):
    def __init__(self, device):
        self.revision = repr((device, *seen))
"""


def test_the_process_is_pinned_before_a_model_is_imported(
    engine: Callable[..., EngineProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "own_engine.py").write_text(OWN_ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    spec = "import:own_engine:Own"
    on_cpu = engine({Kind.GENERATE: spec}).revisions[Kind.GENERATE]
    assert on_cpu == {spec: repr(("cpu", "", str(usable_cores()), False))}
    pinned = EngineProcess({Kind.GENERATE: spec}, "cuda:1", PATIENT, PATIENT)
    pinned.start()
    # Torch is there, to hold the GPU for this worker alone; it was imported with the variable set.
    assert pinned.revisions[Kind.GENERATE] == {spec: repr(("cuda:0", "5", None, True))}
    pinned.stop()


NOTES = """
import torch
def set_num_threads(count, really=torch.set_num_threads):
    really(count)
    torch.notes = [*getattr(torch, "notes", []), count]
torch.set_num_threads = set_num_threads
"""
TOLD = """
import numpy, torch
from tuwen.engine import Picture
answers = [Picture(numpy.array([getattr(torch, "notes", []) * 3], numpy.uint8).reshape(1, -1, 3))]
"""


@pytest.mark.parametrize("bidden", [False, True])
def test_each_model_gets_its_threads_unless_somebody_says_how_many(
    monkeypatch: pytest.MonkeyPatch, *, bidden: bool
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if bidden:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    process = EngineProcess(generator("Puppet") | {Kind.MATCH: "builtin"}, "cpu", PATIENT, PATIENT, threads=3)
    process.start()
    process.run(Kind.GENERATE, asked(NOTES))
    process.run(Kind.MATCH, [MatchItem(painted("nothing"), "a cat")])
    [told] = process.run(Kind.GENERATE, asked(TOLD))
    process.stop()
    assert isinstance(told, Picture)
    noted = told.pixels.reshape(3, -1)[0].tolist()
    if bidden:
        assert noted == []
    else:
        matcher, stranger = noted
        assert matcher in (2, 3)
        assert stranger == 3


def test_neither_batcher_nor_engine_brings_torch_into_the_worker() -> None:
    code = "import sys, workers.inference.batcher, workers.inference.process; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ── cancelling and stopping ───────────────────────────────────────────────────────────────────────


def test_cancellation_reaches_the_running_engine(engine: Callable[..., EngineProcess]) -> None:
    """The sleep, in ten steps, ends early only when the engine sees that nobody wants it any more."""
    process = engine(batch_timeout=3600)
    cancelled = {0: False, 1: False}

    def cancel(step: int, *_: object) -> None:
        cancelled[step - 1] = True

    answers = process.run(Kind.GENERATE, asked("sleep 3", "b"), cancel, lambda index: cancelled[index])
    assert [str(answer) for answer in answers] == ["cancelled", "cancelled"]
    again = process.run(Kind.GENERATE, asked("sleep 0.1", "b"))
    assert all(isinstance(answer, Picture) for answer in again), "flags must not outlive their batch"


def test_a_cancelled_batch_does_not_cancel_the_warm_up_of_the_next_process(
    engine: Callable[..., EngineProcess],
) -> None:
    process = engine(generator("SlowGenerator"))
    [answer] = process.run(Kind.GENERATE, asked("a"), cancelled=lambda index: True)
    assert str(answer) == "cancelled"
    process.start()


def test_stop_interrupts_a_batch_in_another_thread(engine: Callable[..., EngineProcess]) -> None:
    process = engine()
    running = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(process.run, Kind.GENERATE, asked("hang"), cancelled=noting(running))
        assert running.wait(PATIENT)
        process.stop()
        with pytest.raises(EngineCrashed, match="SIGKILL"):
            run.result(PATIENT)
    assert not process.alive


def test_stop_interrupts_a_start_in_another_thread() -> None:
    process = EngineProcess(generator("SleepyAtStart"), "cpu", PATIENT, PATIENT)
    with ThreadPoolExecutor(1) as thread:
        start = thread.submit(process.start)
        eventually(lambda: process.alive)
        process.stop()
        with pytest.raises(EngineStartFailed, match="SIGKILL"):
            start.result(PATIENT)


def test_an_idle_process_may_clean_up_before_it_goes(engine: Callable[..., EngineProcess], tmp_path: Path) -> None:
    process = engine(generator("Puppet"))
    touch = f"import atexit, pathlib; atexit.register(pathlib.Path({str(tmp_path / 'clean')!r}).touch)"
    process.run(Kind.GENERATE, asked(touch))
    process.stop()
    process.stop()  # once more does no harm
    assert (tmp_path / "clean").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_whole_group_are_the_parents_business(puppet: EngineProcess, number: signal.Signals) -> None:
    assert puppet.pid is not None
    os.kill(puppet.pid, number)
    assert puppet.run(Kind.GENERATE, asked("pass"))
    assert puppet.alive


def test_the_process_outlives_the_thread_that_asked_for_it() -> None:
    process = EngineProcess(generator(), "cpu", PATIENT, PATIENT)
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    gc.collect()
    assert process.run(Kind.GENERATE, asked("a"))
    assert process.alive
    process.stop()


# Its thread keeps quiet in the end: what a daemon thread prints while Python exits may abort it.
PARENT = """
import sys, threading
from contextlib import suppress
from tuwen.errors import EngineError
from tuwen.jobs import Kind
from workers.inference.process import EngineProcess
from tuwen.engine import GenerateItem

if __name__ == "__main__":
    engine = EngineProcess({Kind.GENERATE: "import:tests.support.fakes:NullGenerator"}, "cpu", 60, 60)
    engine.start()
    print(engine.pid, flush=True)
    item = GenerateItem(sys.argv[1], 0)
    told = []

    def cancelled(index):
        if not told:
            told.append(index)
            print("runs", flush=True)

    def run():
        with suppress(EngineError):
            engine.run(Kind.GENERATE, [item], cancelled=cancelled)

    if sys.argv[2] == "dies":
        run()
    threading.Thread(target=run, daemon=True).start()
    sys.stdin.read()
"""


def parent(folder: Path, prompt: str, end: str) -> tuple[subprocess.Popen[str], int, list[psutil.Process]]:
    """A worker of its own whose engine runs `prompt`; also the pid of that engine, and all its descendants."""
    script = folder / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, prompt, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    if prompt != "a":
        assert process.stdout.readline() == "runs\n"
    return process, pid, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("prompt", ["a", "hang"], ids=["idle", "busy"])
def test_no_orphan_is_left_when_the_worker_is_killed(tmp_path: Path, prompt: str) -> None:
    process, pid, descendants = parent(tmp_path, prompt, "dies" if prompt == "hang" else "waits")
    assert pid in [descendant.pid for descendant in descendants]
    process.kill()
    process.wait(PATIENT)
    eventually(lambda: all(gone(descendant.pid) for descendant in descendants))


@pytest.mark.parametrize("prompt", ["a", "hang"], ids=["idle", "busy"])
def test_a_worker_that_forgets_to_stop_its_engine_still_exits(tmp_path: Path, prompt: str) -> None:
    process, _, descendants = parent(tmp_path, prompt, "waits")
    process.communicate("", timeout=PATIENT)
    assert process.returncode == 0
    eventually(lambda: all(gone(descendant.pid) for descendant in descendants))


# ── with the batcher in front ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher([EngineProcess(NULL, "cpu", PATIENT, 2.0)])
    made.start()
    yield made
    made.stop(PATIENT)


def outcomes(batcher: Batcher, *prompts: str, **kwargs: Any) -> list[str]:
    """Have them all run at once; the name of the type of what each gets."""

    futures = [batcher.submit(item, **kwargs) for item in asked(*prompts)]
    return [type(future.exception() or future.result()).__name__ for future in futures]


def test_many_threads_share_the_process(batcher: Batcher) -> None:
    assert outcomes(batcher, *["a"] * 40) == ["Picture"] * 40


def test_the_guilty_fail_alone(batcher: Batcher) -> None:
    asked_for = ["a", "fail", "b", "reject", "oom", "nan", "c"]
    expected = ["Picture", "EngineError", "Picture", "EngineError", "OutOfMemory", "EngineError", "Picture"]
    assert outcomes(batcher, *asked_for) == expected


@pytest.mark.parametrize(("trick", "error"), [("crash", "EngineCrashed"), ("hang", "EngineHung")])
def test_a_suspect_that_runs_alone_takes_nobody_with_it(batcher: Batcher, trick: str, error: str) -> None:
    with ThreadPoolExecutor(1) as thread:
        suspect = thread.submit(outcomes, batcher, trick, alone=True)
        assert outcomes(batcher, *["a"] * 20, alone=False) == ["Picture"] * 20
        assert suspect.result(PATIENT) == [error]
    assert outcomes(batcher, "a") == ["Picture"]
    assert batcher.reason is None


def test_stop_kills_what_outlasts_its_grace() -> None:
    engine = EngineProcess(generator("Puppet"), "cpu", PATIENT, PATIENT)
    batcher = Batcher([engine])
    batcher.start()
    endless = "import time; time.sleep(0.2); run.progress(1, 2); time.sleep(3600)"
    running = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(outcomes, batcher, endless, on_progress=lambda *_: running.set())
        assert running.wait(PATIENT)
        batcher.stop(0.1)
        assert run.result(PATIENT) == ["Released"]
    assert not engine.alive
