"""The review page in a real browser, on a run of real processes: look, sort, filter, edit, judge, undo, export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from PIL import Image

from api.http.auth import new_key
from api.routes.pages import POLICY
from shared.settings import Settings
from tests.support.annotation import annotate, dataset, records, wait_until_over
from tests.support.api_server import serving
from tests.support.browser import chromium, open_page
from tests.support.fakes import painted
from tests.support.system import TENANT, System, running_system
from tuwen.datasets import DatasetStatus

HOSTILE = "<img src=x onerror=document.title='owned'> \u202e猫\n.png"
IMAGES = 60
PAGE = 48


@pytest.fixture
def system(settings: Settings, tmp_path: Path) -> Iterator[System]:
    with running_system(settings, tmp_path, describe="import:tests.support.fakes:PickyDescriber") as system:
        yield system


@pytest.fixture
def run(system: System, tmp_path: Path) -> UUID:
    """A data set that was annotated: the redder an image, the surer the model; one is strange, one broken, and at one
    the model fails."""
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (40, 30), (4 * number, 120, 60)).save(source / f"{number:03d}.png")
    Image.new("RGB", (40, 30), (90, 120, 250)).save(source / HOSTILE)
    (source / "broken.png").write_bytes(b"no image")
    Image.fromarray(painted("reject", 40)).save(source / "refused.png")
    system.housekeeper()
    system.worker()
    wishes: dict[str, Any] = {"tasks": ["describe", "match"], "languages": ["en", "zh"], "shard_size": 20}
    id = annotate(system, source, tmp_path / "captions", **wishes)
    assert wait_until_over(system, id).status is DatasetStatus.SUCCEEDED
    return id


def opened(browser: Any, address: str, problems: list[str], **options: Any) -> Any:
    """A tab with the page, which notes whatever goes wrong in it or goes elsewhere."""
    page = open_page(browser, viewport={"width": 1280, "height": 900}, **options)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    origin = "/".join(address.split("/")[:3])
    page.on("request", lambda asked: None if asked.url.startswith((origin, "blob:")) else problems.append(asked.url))
    page.goto(address)
    return page


def names(page: Any) -> list[str]:
    return page.locator(".card .name").all_text_contents()


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.closest('.card')?.querySelector('.name').textContent ?? ''")


def shows(page: Any, position: str) -> None:
    page.locator("#position", has_text=position).wait_for()


@pytest.mark.needs("chromium")
def test_people_review_a_run_with_the_keyboard(system: System, run: UUID, tmp_path: Path) -> None:
    problems: list[str] = []
    with serving(system.settings) as url, chromium() as browser:
        page = opened(browser, f"{url}/datasets", problems)
        page.get_by_role("link", name="photos").click()
        shows(page, "1–48 of 63")
        assert len(names(page)) == PAGE
        page.locator("#run-status", has_text="succeeded").wait_for()
        assert "61 kept, 0 dropped, 2 failed of 63 images" in page.inner_text("#figures")
        page.locator(".card").first.locator("[data-picture=shown]").wait_for()
        assert page.evaluate("document.querySelector('.card img').naturalWidth") == 40
        assert focused(page) == names(page)[0]

        # Foreign words stay words.
        page.keyboard.press("k")
        assert HOSTILE in [*names(page), *_turned(page, "Next page", "49–63 of 63")]
        assert page.title() == "photos · Tuwen 图文"
        assert page.locator(".card .name img").count() == 0
        page.get_by_role("button", name="Previous page").click()
        shows(page, "1–48 of 63")

        # Sorted over all pages; what is not known comes last.
        page.get_by_label("Sort").select_option("confidence")
        page.locator(".card").first.locator(".name", has_text="000.png").wait_for()
        page.get_by_label("Sort").select_option("-confidence")
        page.locator(".card").first.locator(".name", has_text="059.png").wait_for()
        assert names(page)[:3] == ["059.png", "058.png", "057.png"]
        assert _turned(page, "Next page", "49–63 of 63")[-2:] == ["broken.png", "refused.png"]
        page.reload()
        shows(page, "49–63 of 63")
        page.goto(f"{url}/datasets/{run}?sort=score&after=stale")
        page.locator("#message", has_text="belongs to another list").wait_for()
        shows(page, "1–48 of 63")

        # Filtered by what became of them.
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "only"
        page.get_by_label("Show").select_option("failed")
        shows(page, "1–2 of 2")
        assert names(page) == ["broken.png", "refused.png"]
        broken, refused = page.locator(".card").all()
        assert "unsupported_format" in broken.locator(".reason").inner_text()
        assert "rejected, as asked" in refused.locator(".reason").inner_text()
        assert page.get_by_role("button", name="Accept").count() == 0

        # A person says what the model could not; of what is no image, and before there are words, nobody judges.
        page.keyboard.press("Escape")
        page.keyboard.press("e")
        page.locator("#message", has_text="could not be read as an image").wait_for()
        page.keyboard.press("j")
        page.keyboard.press("a")
        page.locator("#message", has_text="write its caption first").wait_for()
        refused.locator("[data-picture=shown]").wait_for()
        page.screenshot(path=tmp_path / "failed.png")
        page.keyboard.press("e")
        page.locator(".editor textarea").first.fill("a dark red square")
        page.screenshot(path=tmp_path / "failed-editing.png")
        page.keyboard.press("Enter")
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        page.locator(".card.open").wait_for(state="detached")
        refused.get_by_text("a dark red square — Ann").wait_for()
        page.keyboard.press("a")
        page.locator(".card.accepted .name", has_text="refused.png").wait_for()
        page.screenshot(path=tmp_path / "failed-accepted.png")
        page.get_by_label("Show").select_option("out_of_domain")
        page.locator(".card .badge", has_text="out of domain").wait_for()
        assert names(page) == [HOSTILE]
        page.get_by_label("Show").select_option("annotated")
        page.get_by_label("Sort").select_option("number")
        page.locator(".card").first.locator(".name", has_text="000.png").wait_for()
        page.keyboard.press("Escape")
        assert focused(page) == "000.png"

        # Edited and judged.
        page.keyboard.press("e")
        [english, chinese] = page.locator(".editor textarea").all()
        assert english.evaluate("each => each === document.activeElement")
        english.fill("a <b>dark</b> square")
        chinese.fill("深色的方块")
        page.keyboard.press("Enter")
        page.locator(".card.open").wait_for(state="detached")
        first = page.locator(".card").first
        assert "a <b>dark</b> square" in first.inner_text()
        assert "深色的方块" in first.inner_text()
        assert "model: a square" in first.inner_text(), "the model's words stay"
        assert focused(page) == "000.png"
        page.keyboard.press("a")
        page.locator(".card.accepted").wait_for()
        assert focused(page) == "001.png"
        page.keyboard.press("r")
        page.locator(".card.rejected").wait_for()
        page.keyboard.press("j")
        page.keyboard.press("ArrowRight")
        assert focused(page) == "004.png"
        page.keyboard.press("r")
        page.locator("[data-number='4'].rejected").wait_for()
        page.keyboard.press("u")
        page.locator("[data-number='4']:not(.rejected)").wait_for()
        assert focused(page) == "004.png"
        page.keyboard.press("?")
        assert page.get_by_role("heading", name="Keys").is_visible()
        page.keyboard.press("Escape")

        # All of it is kept, and exported with who said it.
        page.reload()
        page.locator(".card.accepted").wait_for()
        assert page.locator(".card.accepted .name").all_text_contents() == ["000.png"]
        assert page.locator(".card.rejected .name").all_text_contents() == ["001.png"]
        page.get_by_label("Show").select_option("edited")
        shows(page, "1–2 of 2")
        assert names(page) == ["000.png", "refused.png"]
        page.get_by_role("button", name="Export with reviews").click()
        page.locator("#message", has_text="Exporting").wait_for()
        system.wait_until(lambda: dataset(system, run).status.terminal and _edited(tmp_path), "the export")
    found = {record["name"]: record for record in records(tmp_path / "captions")}
    edited = found["000.png"]
    assert (edited["text"], edited["author"]) == ("a <b>dark</b> square", "Ann")
    assert edited["captions"][0]["text"] == "a square"
    assert {review.get("text") for review in edited["reviews"]} >= {"a <b>dark</b> square", "深色的方块"}
    assert {review["author"] for review in edited["reviews"]} == {"Ann"}
    assert (found["refused.png"]["text"], found["refused.png"]["author"]) == ("a dark red square", "Ann")
    assert found["refused.png"]["error"]["code"] == "engine_error", "the model's end stays beside it"
    assert [line["name"] for line in _lines(tmp_path / "captions/errors.jsonl")] == ["broken.png"]
    assert "001.png" not in found
    [rejected] = [line for line in _lines(tmp_path / "captions/dropped.jsonl") if line["name"] == "001.png"]
    assert "Ann" in json.dumps(rejected)
    assert problems == []


def _turned(page: Any, button: str, position: str) -> list[str]:
    page.get_by_role("button", name=button).click()
    shows(page, position)
    return names(page)


def _edited(folder: Path) -> bool:
    return "Ann" in (folder / "captions/annotations.jsonl").read_text()


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.needs("chromium")
def test_with_keys_it_asks_once_and_signs_with_the_name_of_the_key(system: System, run: UUID) -> None:
    key, digest = new_key()
    roots = (dataset(system, run).request.source,)
    system.database.keys.add(name="Bo's tablet", tenant=TENANT, sha256=digest, quota=5, dataset_roots=roots)
    problems: list[str] = []
    with serving(system.settings.model_copy(update={"auth": "keys"})) as url, chromium() as browser:
        page = opened(browser, f"{url}/datasets/{run}", problems)
        page.get_by_label("Key (tw_…)").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_label("Key (tw_…)").fill(key)
        page.keyboard.press("Enter")
        shows(page, "1–48 of 63")
        page.locator(".card").first.locator("[data-picture=shown]").wait_for()
        page.keyboard.press("a")
        page.locator(".card.accepted").wait_for()
        page.reload()
        page.locator('.card.accepted .badge[title="by Bo\'s tablet"]').wait_for()
        assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 1
        assert key not in page.content()
        assert key not in page.url
    assert problems == []
    [review] = system.database.datasets.reviews(run, [0])[0]
    assert (review.author, review.verdict) == ("Bo's tablet", "accepted")


@pytest.mark.needs("chromium")
def test_it_follows_a_run_and_steers_it(system: System, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 90, 60)).save(source / f"{number}.png")
    problems: list[str] = []
    with serving(system.settings) as url, chromium() as browser:
        id = annotate(system, source, tmp_path / "captions")
        page = opened(browser, f"{url}/datasets/{id}", problems)
        page.get_by_role("button", name="Pause").click()
        page.locator("#run-status", has_text="paused").wait_for()
        assert dataset(system, id).paused
        page.get_by_role("button", name="Resume").click()
        system.housekeeper()
        system.worker()
        page.locator("#run-status", has_text="succeeded").wait_for()
        assert "6 kept, 0 dropped, 0 failed of 6 images" in page.inner_text("#figures")
        # Nothing follows the news of its end, and yet all that was found is shown.
        page.locator(".card .caption", has_text="a square").nth(5).wait_for()
        # A narrow window needs no scrolling sideways.
        page.set_viewport_size({"width": 360, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert problems == []


def test_pages_are_locked_down(api: httpx.Client) -> None:
    page = api.get("/datasets")
    assert page.headers["content-security-policy"] == POLICY
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert api.get("/datasets", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    for text in (page.text, api.get("/datasets/anything").text):
        assert "<style" not in text
        assert " style=" not in text
        assert text.count("<script") == text.count('<script type="module" src="/web/')
        for name in {part.split('"')[0] for part in text.split('"/web/')[1:]}:
            assert api.get(f"/web/{name}").status_code == 200, name
    for path in ("/web/pages.py", "/web/..%2fapp.py", "/web/review.html", "/web/"):
        assert api.get(path).status_code == 404, path
