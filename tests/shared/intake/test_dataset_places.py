"""The places that data sets may lie in."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.intake.dataset_places import normalize, require_allowed
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
    ],
)
def test_one_place_one_name(written: str, meant: str) -> None:
    assert normalize(written) == meant


@pytest.mark.parametrize("place", ["relative", "./a", "~/a", "ftp://a/b", "s3://bucket/../other"])
def test_what_is_no_place(place: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        require_allowed(place, Settings(auth="open"), "source")
    assert refused.value.field == "source"


def test_an_open_installation_serves_its_own_user() -> None:
    assert require_allowed("/anywhere/", Settings(auth="open"), "source") == "/anywhere"


@pytest.mark.parametrize(
    "place", ["/etc", "/data", "/data/pho", "/data/photos2", "/data/photos/../x", "s3://b/photos2"]
)
def test_with_keys_only_the_roots(place: str) -> None:
    settings = Settings(auth="keys", dataset_roots=("/data/photos", "s3://b/photos"))
    with pytest.raises(Forbidden, match="TUWEN_DATASET_ROOTS"):
        require_allowed(place, settings, "source")


@pytest.mark.parametrize("place", ["/data/photos", "/data/photos/a/b", "s3://b/photos", "s3://b/photos/a"])
def test_below_the_roots(place: str) -> None:
    settings = Settings(auth="keys", dataset_roots=("/data/photos/", "s3://b/photos/"))
    assert require_allowed(place, settings, "source") == place


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
    settings = Settings(auth="keys", dataset_roots=("/data", "s3://b"), storage_url=storage)
    with pytest.raises(Forbidden, match="object storage"):
        require_allowed(place, settings, "destination")


def test_but_beside_them() -> None:
    settings = Settings(auth="keys", dataset_roots=("/data", "s3://b"), storage_url="s3://b/objects")
    for place in ("s3://b/objects2", "s3://b/photos/objects", "/data/objects"):
        assert require_allowed(place, settings, "source") == place


def test_nor_where_a_relative_folder_or_a_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objects").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "objects")
    settings = Settings(auth="keys", dataset_roots=(str(tmp_path),), storage_url="file://objects")
    for place, followed in (("objects", False), ("link", True)):
        with pytest.raises(Forbidden, match="object storage"):
            require_allowed(str(tmp_path / place), settings, "source", followed=followed)
    require_allowed(str(tmp_path / "photos"), settings, "source")


def test_without_roots_nothing() -> None:
    with pytest.raises(Forbidden):
        require_allowed("/data", Settings(auth="keys"), "source")


def test_links_are_followed_where_the_file_system_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("/etc")
    settings = Settings(auth="keys", dataset_roots=(str(tmp_path / "data"),))
    link = str(tmp_path / "data" / "link")
    assert require_allowed(link, settings, "source") == link
    with pytest.raises(Forbidden):
        require_allowed(link, settings, "source", followed=True)


def test_roots_may_be_links_themselves(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    settings = Settings(auth="keys", dataset_roots=(str(tmp_path / "root"),))
    place = str(tmp_path / "root" / "photos")
    assert require_allowed(place, settings, "source", followed=True) == place
