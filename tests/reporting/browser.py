"""Debian's Chromium without a window, driven by Selenium, and what it noticed: console, requests, pixels."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_SIZE = 1280, 900
_LOAD_SECONDS = 60
# Asked in the page: as it is laid out, and not as it was meant.
_IMAGES = """
return [...document.images].map(image => {
  const box = image.getBoundingClientRect();
  return {alt: image.alt, complete: image.complete, natural: image.naturalWidth, width: box.width, height: box.height,
          visible: image.checkVisibility({opacityProperty: true, visibilityProperty: true}),
          inside: box.left >= 0 && box.right <= document.documentElement.clientWidth};
});
"""
_COLOURS = """
const of = name => getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number);
return [of('color'), of('backgroundColor')];
"""


@dataclass
class Browser:
    """A started Chromium."""

    driver: Any

    def open(self, address: str) -> None:
        for kind in ("browser", "performance"):
            self._logged(kind)  # what is there is of the page before
        self.driver.get(address)

    def open_file(self, path: Path) -> None:
        self.open(path.absolute().as_uri())

    def console(self) -> list[str]:
        """What the page had to complain of since it was opened."""
        return [entry["message"] for entry in self._logged("browser")]

    def requests(self) -> list[str]:
        """All that was fetched since the page was opened, itself included; not what stands in it as data."""
        messages = (json.loads(entry["message"])["message"] for entry in self._logged("performance"))
        asked = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        # chrome: is the browser's own first page, which may still be loading.
        return [address for address in asked if not address.startswith(("data:", "chrome:", "about:"))]

    def images(self) -> list[dict[str, Any]]:
        return self.driver.execute_script(_IMAGES)

    def pixels(self, number: int) -> Image.Image:
        """What is really seen of an image of the page."""
        element = self.driver.find_elements("tag name", "img")[number]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        return Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")

    def contrast(self, scheme: str) -> float:
        """Of the text with its ground, as WCAG counts it, for a reader who wants it "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        text, ground = (_luminance(colour) for colour in self.driver.execute_script(_COLOURS))
        return (max(text, ground) + 0.05) / (min(text, ground) + 0.05)

    def width_at(self, width: int) -> int:
        """Pixels that the page needs on a screen that is `width` pixels wide."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        needed = self.driver.execute_script("return document.documentElement.scrollWidth")
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        return needed

    def cut_network(self) -> None:
        self.driver.execute_cdp_cmd("Network.enable", {})
        conditions = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    def _logged(self, kind: str) -> list[dict[str, Any]]:
        return self.driver.get_log(kind)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser of its own with nothing in its profile; skips the test where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not on PATH (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    arguments = ["--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    # Its own errands (updates, lists of bad sites) are no requests of the page.
    arguments += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    arguments += [f"--user-data-dir={profile}", f"--window-size={_SIZE[0]},{_SIZE[1]}"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to sandbox what root starts
    for argument in arguments:
        options.add_argument(argument)
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        started.set_page_load_timeout(_LOAD_SECONDS)
        yield Browser(started)
    finally:
        started.quit()


def _luminance(colour: list[float]) -> float:
    parts = [value / 255 for value in colour[:3]]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
