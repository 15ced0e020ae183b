"""Opening beneath roots: links that stay are followed, links that leave are refused, also while names are swapped."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shared.intake.beneath import EVERYWHERE, Roots, kernel_can, openat2_beneath, opened
from shared.intake.held_folder import DIRECTORY, HeldFolder
from tuwen.errors import PathForbidden

SECRET = b"secret"


@pytest.fixture(params=["openat2", "walk"])
def openat2(request: pytest.FixtureRequest) -> bool:
    """Whether the kernel's call is used, or each component is opened here, as where the call is forbidden."""
    if request.param == "openat2" and not kernel_can():
        pytest.skip("this kernel has no openat2, or a filter forbids it")
    return bool(request.param == "openat2")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("root/a/b", "root2", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root/a/b/file").write_bytes(b"inside")
    (tmp_path / "root2/file").write_bytes(b"second")
    (tmp_path / "outside/file").write_bytes(SECRET)
    return tmp_path


@pytest.fixture
def roots(tree: Path, openat2: bool) -> Iterator[Roots]:
    roots = Roots([str(tree / "root"), str(tree / "root2")], openat2=openat2)
    yield roots
    roots.close()


def read(roots: Roots, path: Path | str) -> bytes:
    with opened(roots, str(path)) as file:
        return os.read(file, 100)


@pytest.mark.parametrize(
    ("link", "target", "content"),
    [
        ("plain", "a/b/file", b"inside"),
        ("folder", "a/b", b"inside"),
        ("a/up", "../a/b/file", b"inside"),
        ("absolute", "{tree}/root/a/b/file", b"inside"),
        ("absolute folder", "{tree}/root/a/b", b"inside"),
        ("over a link", "a/b/../../a/b/file", b"inside"),
        ("out and in", "../root/a/b/file", b"inside"),
        ("to another root", "{tree}/root2/file", b"second"),
        ("beside", "../root2/file", b"second"),
        ("with dots", "{tree}/root/../root/a/./b/file", b"inside"),
    ],
)
def test_links_that_stay_are_followed(tree: Path, roots: Roots, link: str, target: str, content: bytes) -> None:
    path = tree / "root" / link
    path.symlink_to(target.format(tree=tree))
    path = path / "file" if path.is_dir() else path
    assert read(roots, path) == content
    assert roots.stat(str(path)).st_size == len(content)
    assert roots.real_path(str(path)) == str(path.resolve())


@pytest.mark.parametrize(
    "target",
    [
        "../outside/file",
        "{tree}/outside/file",
        "a/../../outside/file",
        "/etc/passwd",
        "/proc/self/root/etc/passwd",
        "{tree}/root/../outside/file",
        "../root/../outside/file",
        "chain",
    ],
)
def test_links_that_lead_out_are_refused(tree: Path, roots: Roots, target: str) -> None:
    (tree / "root/chain").symlink_to("../outside/file")
    (tree / "root/link").symlink_to(target.format(tree=tree))
    (tree / "root/folder").symlink_to((tree / "root/link").resolve().parent)
    for path in ("link", "folder/file", "folder/passwd", "folder"):
        for look in (roots.open, roots.stat, roots.real_path):
            with pytest.raises(PathForbidden, match="leads out"):
                look(str(tree / "root" / path))  # type: ignore[operator]


@pytest.mark.parametrize("path", ["outside/file", "root/../outside/file", "root3", "", "root2file"])
def test_paths_outside_are_refused_by_name(tree: Path, roots: Roots, path: str) -> None:
    with pytest.raises(PathForbidden):
        roots.open(f"{tree}/{path}")


def test_what_is_not_there_and_what_goes_in_circles(tree: Path, roots: Roots) -> None:
    (tree / "root/circle").symlink_to("circle")
    (tree / "root/nowhere").symlink_to("missing")
    for path in ("missing", "nowhere", "a/missing/file"):
        with pytest.raises(FileNotFoundError):
            roots.open(str(tree / "root" / path))
    with pytest.raises(NotADirectoryError):
        roots.open(str(tree / "root/a/b/file/x"))
    with pytest.raises(OSError, match="Too many levels"):
        roots.open(str(tree / "root/circle"))
    for number in range(60):
        (tree / f"root/{number}").symlink_to(f"{tree}/root/{number + 1}")
    with pytest.raises(OSError, match="Too many levels"):
        roots.open(str(tree / "root/0"))
    with pytest.raises(ValueError, match="null"):
        roots.open(str(tree / "root/a\0b"))


def test_names_that_are_no_text(tree: Path, roots: Roots) -> None:
    name = os.fsdecode("猫 ".encode() + b"\xe9")
    (tree / "root" / name).write_bytes(b"x")
    assert read(roots, tree / "root" / name) == b"x"


def test_a_root_may_be_a_link_and_go_by_either_name(tree: Path, openat2: bool) -> None:
    (tree / "alias").symlink_to("root")
    (tree / "root/absolute").symlink_to(tree / "root/a/b/file")
    (tree / "root/by alias").symlink_to(tree / "alias/a/b/file")
    roots = Roots([str(tree / "alias")], openat2=openat2)
    for path in ("alias/a/b/file", "root/a/b/file", "alias/absolute", "alias/by alias"):
        assert read(roots, tree / path) == b"inside"
    roots.close()


def test_one_folder_never_counts(tree: Path, openat2: bool) -> None:
    """The object storage may lie within a root, and no link may lead into it."""
    (tree / "root/a/b/link").symlink_to(tree / "root/objects/file")
    (tree / "root/objects").mkdir()
    (tree / "root/objects/file").write_bytes(SECRET)
    roots = Roots([str(tree / "root")], excluded=str(tree / "root/objects"), openat2=openat2)
    for path in ("objects/file", "a/b/link", "objects"):
        with pytest.raises(PathForbidden):
            roots.open(str(tree / "root" / path))
    assert read(roots, tree / "root/a/b/file") == b"inside"
    roots.close()


def test_missing_folders_are_made_beneath(tree: Path, roots: Roots) -> None:
    with roots.folder(str(tree / "root/a/new/deep"), make=True) as folder:
        folder.write("x/y", b"1")
    assert (tree / "root/a/new/deep/x/y").read_bytes() == b"1"
    (tree / "root/away").symlink_to(tree / "outside")
    with pytest.raises(PathForbidden):
        roots.folder(str(tree / "root/away/new"), make=True)
    assert {path.name for path in (tree / "outside").iterdir()} == {"file"}
    with pytest.raises(FileNotFoundError):
        roots.folder(str(tree / "root/a/none"))


def test_real_path_of_what_does_not_exist_yet(tree: Path, roots: Roots) -> None:
    (tree / "root/link").symlink_to("a/b")
    assert roots.real_path(str(tree / "root/link/new/one")) == str(tree / "root/a/b/new/one")
    assert EVERYWHERE.real_path(str(tree / "root/link/new/one")) == str(tree / "root/a/b/new/one")


def test_a_root_that_does_not_exist(tree: Path, openat2: bool) -> None:
    roots = Roots([str(tree / "later")], openat2=openat2)
    for path in ("later", "later/file"):
        for look in (roots.open, roots.stat, roots.real_path, roots.folder):
            with pytest.raises(FileNotFoundError):
                look(str(tree / path))  # type: ignore[operator]
    with pytest.raises(FileNotFoundError):
        roots.folder(str(tree / "later/new"), make=True)
    (tree / "later").mkdir()
    with roots.folder(str(tree / "later/new"), make=True):
        assert roots.real_path(str(tree / "later/new")) == str(tree / "later/new")
    roots.close()


def test_no_descriptor_is_left_open(tree: Path, openat2: bool) -> None:
    (tree / "root/out").symlink_to("/etc/passwd")
    (tree / "root/in").symlink_to(tree / "root/a/b/file")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        roots = Roots([str(tree / "root")], openat2=openat2)
        for path in ("out", "in", "a/b/file", "missing", "a/b/file/x", "a"):
            with suppress(OSError, PathForbidden):
                os.close(roots.open(str(tree / "root" / path)))
            with suppress(OSError, PathForbidden):
                roots.stat(str(tree / "root" / path))
        roots.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_programs_started_later_inherit_nothing(tree: Path, roots: Roots) -> None:
    with opened(roots, str(tree / "root/a/b/file")) as file:
        assert not os.get_inheritable(file)


@pytest.mark.skipif(not kernel_can(), reason="this kernel has no openat2, or a filter forbids it")
def test_the_call_itself_refuses() -> None:
    at = os.open("/tmp", DIRECTORY)
    with pytest.raises(OSError, match="cross-device"):
        openat2_beneath(at, "../etc/passwd", os.O_RDONLY)
    os.close(at)


class Swapping:
    """Swaps a name between a folder and a link to the outside, as fast as it can, until the block ends."""

    def __init__(self, place: Path, outside: Path):
        self._place, self._outside = place, outside
        self._aside = place.with_name("aside")
        self._link = place.with_name("link aside")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.swaps = 0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> Swapping:
        self._link.symlink_to(self._outside)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._place.rename(self._aside)
            self._link.rename(self._place)
            self._place.rename(self._link)
            self._aside.rename(self._place)
            self.swaps += 1


def test_a_folder_that_becomes_a_link_while_it_is_read(tree: Path, roots: Roots) -> None:
    times_read = 0
    with Swapping(tree / "root/a/b", tree / "outside") as swapping:
        while swapping.swaps < 2000 or not times_read:
            assert swapping.alive
            with suppress(OSError, PathForbidden):
                assert read(roots, tree / "root/a/b/file") == b"inside"
                times_read += 1


def test_a_folder_that_becomes_a_link_while_it_is_written(tree: Path, roots: Roots) -> None:
    written = 0
    (tree / "root/a/b/new").mkdir()
    (tree / "outside/new").mkdir()
    with Swapping(tree / "root/a/b", tree / "outside") as swapping:
        while swapping.swaps < 2000 or not written:
            assert swapping.alive
            with suppress(OSError, PathForbidden), roots.folder(str(tree / "root/a/b/new")) as folder:
                folder.replace("file", b"ours", temporary=".file")
                written += 1
    assert list((tree / "outside/new").iterdir()) == []
    assert (tree / "root/a/b/new/file").read_bytes() == b"ours"


class TestHeldFolder:
    @pytest.fixture
    def held(self, tree: Path) -> Iterator[HeldFolder]:
        with HeldFolder(os.open(tree / "root", DIRECTORY), "root") as folder:
            yield folder

    def test_nothing_is_written_through_a_link(self, tree: Path, held: HeldFolder) -> None:
        (tree / "root/link").symlink_to(tree / "outside/file")
        (tree / "root/folder").symlink_to(tree / "outside")
        (tree / "root/.temporary").symlink_to(tree / "outside/file")
        for name in ("link", "folder/new"):
            with pytest.raises(OSError, match=r"exists|directory"):
                held.create(name)
            with pytest.raises(OSError, match=r"exists|directory"):
                held.write(name, b"ours")
        assert held.read("link") is None
        assert held.find("folder/file") is None
        held.replace("link", b"ours", temporary=".temporary")
        assert not (tree / "root/link").is_symlink()
        held.remove("folder")
        assert not (tree / "root/folder").exists()
        assert {path.name: path.read_bytes() for path in (tree / "outside").iterdir()} == {"file": SECRET}

    @pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "", ".", "a/."])
    def test_names_are_names(self, held: HeldFolder, name: str) -> None:
        with pytest.raises(OSError, match="not a name"):
            held.write(name, b"x")

    def test_it_stays_the_same_folder_when_its_name_means_another(self, tree: Path, held: HeldFolder) -> None:
        (tree / "root").rename(tree / "moved")
        (tree / "root").symlink_to(tree / "outside")
        held.write("new", b"ours")
        assert (tree / "moved/new").read_bytes() == b"ours"
        assert set(held.names()) == {"a", "new"}
