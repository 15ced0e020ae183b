"""The places that data sets may lie in."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shared.intake.dataset_places import Permission, normalize
from shared.settings import Settings
from tuwen.errors import Forbidden, InvalidRequest


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/a/b/", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("file:///a/b", "/a/b"),
        ("/猫/ a b", "/猫/ a b"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket//a///b", "s3://bucket/a/b"),
        ("//data//a", "/data/a"),
        ("file:////data/a", "/data/a"),
        ("/data/a/../../../etc", "/etc"),
    ],
)
def test_one_place_one_name(written: str, meant: str) -> None:
    assert normalize(written) == meant


def keys(*key_roots: str, **settings: Any) -> Permission:
    return Permission.of(Settings(auth="keys", **settings), key_roots)


def follow(permission: Permission, place: Path) -> str:
    """The real path of a place, as a housekeeper finds it."""
    with closing(permission.open()) as roots:
        return permission.require_followed(str(place), "source", roots)


@pytest.mark.parametrize("place", ["relative", "./a", "~/a", "ftp://a/b", "s3://bucket/../other", "s3://b/./a"])
def test_what_is_no_place(place: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Permission.of(Settings(auth="open"), None).require(place, "source")
    assert refused.value.field == "source"


def test_an_open_installation_serves_its_own_user(tmp_path: Path) -> None:
    permission = Permission.of(Settings(auth="open"), None)
    assert permission.require("/anywhere/", "source") == "/anywhere"
    (tmp_path / "link").symlink_to("/etc")
    assert follow(permission, tmp_path / "link") == "/etc"


def test_an_open_installation_with_bounds_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    permission = Permission.of(Settings(auth="open", dataset_roots=(str(tmp_path),)), None)
    with pytest.raises(Forbidden, match="TUWEN_DATASET_ROOTS"):
        permission.require("/etc", "source")
    with pytest.raises(Forbidden, match="a link in it leads out"):
        follow(permission, tmp_path / "link")


@pytest.mark.parametrize(
    "place",
    ["/etc", "/data", "/data/pho", "/data/photos2", "/data/photos/../x", "//data/x", "s3://b/photos2", "s3://b"],
)
def test_a_key_has_its_own_roots_only(place: str) -> None:
    with pytest.raises(Forbidden, match="the roots of this API key"):
        keys("/data/photos", "s3://b/photos").require(place, "source")


@pytest.mark.parametrize("place", ["/data/photos", "/data/photos/a/b", "s3://b/photos", "s3://b/photos/a"])
def test_below_the_roots(place: str) -> None:
    assert keys("/data/photos/", "s3://b//photos/").require(place, "source") == place


def test_a_key_without_roots_may_name_none_even_below_the_installations() -> None:
    for permission in (keys(), keys(dataset_roots=("/data",))):
        with pytest.raises(Forbidden, match="none"):
            permission.require("/data", "source")


def test_the_installation_bounds_all_keys() -> None:
    permission = keys("/data/alice", "/elsewhere", "s3://b", dataset_roots=("/data", "s3://b/sets"))
    assert permission.roots == ("/data/alice", "s3://b/sets")
    assert permission.require("s3://b/sets/1", "source")
    for place in ("/elsewhere", "/data/bob", "s3://b/other"):
        with pytest.raises(Forbidden):
            permission.require(place, "source")


def test_without_a_key_the_installations_roots_hold() -> None:
    for roots in ((), ("/other",)):
        with pytest.raises(Forbidden):
            Permission.of(Settings(auth="keys", dataset_roots=roots), None).require("/data", "source")


@pytest.mark.parametrize(
    ("storage", "place"),
    [
        ("s3://b/tuwen", "s3://b"),
        ("s3://b/tuwen", "s3://b/tuwen"),
        ("s3://b/tuwen/", "s3://b/tuwen/results"),
        ("s3://b", "s3://b/photos"),
        ("file:///data/tuwen/objects", "/data"),
        ("file:///data/tuwen/objects", "/data/tuwen/objects/files"),
    ],
)
def test_never_where_the_objects_of_others_lie(storage: str, place: str) -> None:
    with pytest.raises(Forbidden, match="object storage"):
        keys("/data", "s3://b", storage_url=storage).require(place, "destination")


def test_but_beside_them() -> None:
    permission = keys("/data", "s3://b", storage_url="s3://b/objects")
    for place in ("s3://b/objects2", "s3://b/photos/objects", "/data/objects"):
        assert permission.require(place, "source") == place


def test_nor_where_a_relative_folder_or_a_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objects").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "objects")
    permission = keys(str(tmp_path), storage_url="file://objects")
    with pytest.raises(Forbidden, match="object storage"):
        permission.require(str(tmp_path / "objects"), "source")
    with pytest.raises(Forbidden, match="leads out"):
        follow(permission, tmp_path / "link")
    assert follow(permission, tmp_path / "photos") == str(tmp_path / "photos")


def test_links_are_followed_where_the_file_system_is(tmp_path: Path) -> None:
    (tmp_path / "data/real").mkdir(parents=True)
    (tmp_path / "data/link").symlink_to("/etc")
    (tmp_path / "data/inner").symlink_to("real")
    permission = keys(str(tmp_path / "data"))
    link = str(tmp_path / "data/link")
    assert permission.require(link, "source") == link, "the API need not see the file system"
    with pytest.raises(Forbidden, match="a link in it leads out"):
        follow(permission, tmp_path / "data/link")
    assert follow(permission, tmp_path / "data/inner/new") == str(tmp_path / "data/real/new")


def test_roots_may_be_links_themselves(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    permission = keys(str(tmp_path / "root"))
    assert follow(permission, tmp_path / "root/photos") == str(tmp_path / "real/photos")


def test_an_export_takes_the_place_of_no_root() -> None:
    permission = keys("/data/alice", "s3://b/alice")
    with pytest.raises(InvalidRequest, match="a root of data sets itself"):
        permission.require_destination("/data/alice/")
    assert permission.require_destination("/data/alice/out") == "/data/alice/out"
    assert permission.require_destination("s3://b/alice") == "s3://b/alice", "where nothing is replaced as a whole"


def test_roots_that_a_key_may_get() -> None:
    permission = keys("/data", storage_url="file:///data/objects")
    permission.require_root("/data")
    for root in ("/data/objects", "/data/objects/files"):
        with pytest.raises(Forbidden, match="object storage"):
            permission.require_root(root)
    with pytest.raises(InvalidRequest):
        permission.require_root("relative")
