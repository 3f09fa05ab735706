"""Reports as a reader sees them, in a real browser: every figure is there, nothing is fetched, nothing complains."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.reporting.browser import Browser, chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGES = ("step-00000020/report.html", "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The folder over HTTP on loopback: its address, and what was asked for."""
    asked: list[str] = []

    class Noting(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Noting, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def require_every_image_seen(browser: Browser) -> None:
    images = browser.images()
    assert len(images) >= 5
    for number, image in enumerate(images):
        assert image["complete"] and image["natural"] > 300, image
        assert image["visible"] and image["inside"], image
        assert image["width"] > 200 and image["height"] > 60, image
        assert len(image["alt"]) > 30, image
        colours = browser.pixels(number).getcolors(1 << 20)
        assert colours is None or len(colours) > 20, f"{image['alt']}: nothing is drawn"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_with_all_its_figures_and_without_complaint(browser, reported, page):
    browser.open_file(reported.evaluated / page)
    require_every_image_seen(browser)
    assert browser.requests() == [(reported.evaluated / page).absolute().as_uri()]
    assert browser.console() == []
    assert browser.driver.execute_script("return document.scripts.length") == 0


@pytest.mark.parametrize("page", PAGES)
def test_a_server_is_asked_for_the_page_alone(browser, reported, page):
    with served(reported.evaluated) as (address, asked):
        browser.open(f"{address}/{page}")
        require_every_image_seen(browser)
        assert browser.requests() == [f"{address}/{page}"]
    assert asked == [f"/{page}"]
    assert browser.console() == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_away_from_its_folder_and_the_network(reported, page, tmp_path):
    alone = tmp_path / "alone.html"
    alone.write_bytes((reported.evaluated / page).read_bytes())
    with chromium(tmp_path / "profile") as browser:
        browser.cut_network()
        # The cut is one: a page that is fetched does not come.
        with served(reported.evaluated) as (address, asked):
            with pytest.raises(Exception, match="ERR_INTERNET_DISCONNECTED"):
                browser.open(f"{address}/{page}")
            assert asked == []
        browser.open_file(alone)
        require_every_image_seen(browser)
        assert browser.console() == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_read_in_the_light_in_the_dark_and_on_a_phone(browser, reported, page):
    browser.open_file(reported.evaluated / page)
    assert browser.contrast("light") > 7
    assert browser.contrast("dark") > 7
    assert browser.width_at(390) <= 390


def test_hostile_texts_are_read_and_do_nothing(browser, reported):
    browser.open_file(reported.evaluated / PAGES[0])
    text = browser.driver.find_element("tag name", "body").text
    assert "</td><script>alert(1)</script><img src=x onerror=alert(2)> | **bold**" in text
    assert "alert(3)" in text
    assert browser.driver.execute_script("return document.querySelectorAll('script, [onerror]').length") == 0


def test_the_browser_would_tell_what_is_wrong(browser, tmp_path):
    """The checks above can fail: a page with everything that they look for."""
    page = tmp_path / "wrong.html"
    page.write_text("<img src='gone.png' alt='a figure'><script>console.error('it complains')</script>")
    browser.open_file(page)
    assert any("gone.png" in address for address in browser.requests())
    assert any("it complains" in line for line in browser.console())
    assert browser.images()[0]["natural"] == 0
