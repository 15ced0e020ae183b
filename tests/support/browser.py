"""A real browser, for the pages; a test that uses it is marked `@pytest.mark.needs("chromium")`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support import programs
from tests.support.waiting import PATIENT


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's `Browser`, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers commonly lack the rights that Chromium's own sandbox needs, and have a tiny /dev/shm. The only
        # pages that it opens are ours.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=programs.path("chromium"), args=options)
        yield browser
        browser.close()


def open_page(browser: Any, **options: Any) -> Any:
    """A new tab that waits for as long as other tests do: Playwright's 30 seconds are short on a busy machine."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENT * 1000)
    return page
