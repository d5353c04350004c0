"""A browser: Debian's Chromium without a window, driven by selenium; what it asked for and complained about."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.servers import need

OPTIONS = """--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run
--disable-background-networking --disable-component-update --disable-sync --disable-default-apps --no-proxy-server"""


class Browser:
    """One window. `asked`: the URLs of all requests since clear(); `said`: warnings and errors on its console."""

    def __init__(self, driver: webdriver.Chrome, pictures: Path) -> None:
        self.driver, self._pictures = driver, pictures
        self.asked: list[str] = []
        self.said: list[str] = []

    def clear(self, wide: int = 1280, high: int = 800, dark: bool = False, phone: bool = False) -> None:
        """An empty page without a history of requests, in a window of this size."""
        self.driver.switch_to.new_window("tab")
        new = self.driver.current_window_handle
        for handle in self.driver.window_handles:
            if handle != new:
                self.driver.switch_to.window(handle)
                self.driver.close()
        self.driver.switch_to.window(new)
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
        shape = {"width": wide, "height": high, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.look()
        self.asked.clear()
        self.said.clear()

    def look(self) -> None:
        """Take the logs of the browser over."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
        self.said += [entry["message"] for entry in self.driver.get_log("browser")]

    def hosts(self) -> set[str]:
        """Whom the requests went to."""
        self.look()
        return {urlsplit(url).netloc for url in self.asked if not url.startswith(("data:", "blob:", "about:"))}

    def requests(self, path: str) -> list[str]:
        self.look()
        return [url for url in self.asked if urlsplit(url).path.startswith(path)]

    def open(self, url: str) -> None:
        self.driver.get(url)

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *args)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The first that can be seen."""
        return self.wait(lambda: next((found for found in self.all(selector) if found.is_displayed()), None), selector)

    def texts(self, selector: str) -> list[str]:
        found = self.run("[...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)
        return [str(text) for text in found]

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def click(self, selector: str) -> None:
        def click() -> bool:
            self.one(selector).click()
            return True

        self.wait(click, selector)  # again, where the page has just made another in its place

    def press(self, *keys: str) -> None:
        """Keys, to what has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def wait(self, condition: Callable[[], Any], what: str = "", seconds: float = 10) -> Any:
        """What a condition returns once it is true. AssertionError: it never was."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(StaleElementReferenceException):
                if found := condition():
                    return found
            time.sleep(0.02)
        self.shoot("failed")
        raise AssertionError(f"{what or condition}: not within {seconds} s, at {self.driver.current_url}")

    def shoot(self, name: str) -> Path:
        """A picture of the window."""
        path = self._pictures / f"gallery-{name}.png"
        self.driver.save_screenshot(str(path))
        return path


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in `folder`. Pictures go to $WDS_ARTIFACTS, or to `folder`."""
    how = "apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = need("chromium", shutil.which("chromium"), how)
    for option in [*OPTIONS.split(), f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    pictures = Path(os.environ.get("WDS_ARTIFACTS") or folder)
    pictures.mkdir(parents=True, exist_ok=True)
    service = Service(need("chromedriver", shutil.which("chromedriver"), how))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver, pictures)
    finally:
        driver.quit()
