"""A browser on the explorer's page: the served page, its canvases and controls by the names that a person reads."""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ctvlm_lib.launch.trial import free_port

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = [f"--disable-{what}" for what in ("gpu", "quic", "background-networking", "component-update", "sync")]


def browser_path() -> str:
    """Chromium's path; without one the test is skipped, on CI it fails."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        why = "no Chromium on the PATH; install Debian's package chromium"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    return found


class Served:
    """A server process, asked until it answers."""

    def __init__(self, *words: str, log: Path, path: str = "/", **environment: str) -> None:
        self.port = free_port()
        self.url, self.log = f"http://127.0.0.1:{self.port}{path}", log
        words = [word.format(port=self.port) for word in words]
        with open(log, "w") as file:
            self.process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", *words], stdout=file, stderr=file,
                                            env=os.environ | environment)  # fmt: skip
        ends = time.monotonic() + 60
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > ends:
                self.stop()
                pytest.fail(f"the server didn't answer: {log.read_text()[-2000:]}")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether somebody listens; asking for the page itself would start a kernel."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Page:
    """The explorer in one tab.

    Args:
        browser: Playwright's.
        url: of the page.
        before: called with the tab once it is there. keys: pressed after that.
    """

    def __init__(self, browser, url: str, before=None, keys: str = "", **context) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "accept_downloads": True} | context
        )
        self.tab = self.context.new_page()
        self.asked, self.errors = [], []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.set_default_timeout(40_000)
        self.tab.goto(url)
        if before is not None:
            before(self.tab)
            self.tab.keyboard.press(keys)
        self.tab.wait_for_selector("canvas[data-plane=axial][data-index]", timeout=150_000)

    def canvas(self, plane: str = "axial"):
        return self.tab.locator(f"canvas[data-plane={plane}]")

    def index(self, plane: str = "axial") -> int:
        return int(self.canvas(plane).get_attribute("data-index"))

    def until(self, plane: str, index: int) -> None:
        """Wait until a slice is shown."""
        self.tab.wait_for_selector(f"canvas[data-plane={plane}][data-index='{index}']")

    def label(self, plane: str = "axial") -> str:
        return self.canvas(plane).get_attribute("aria-label")

    def until_label(self, words: str, plane: str = "axial") -> None:
        self.tab.wait_for_selector(f"canvas[data-plane={plane}][aria-label*='{words}']")

    def section(self, name: str) -> None:
        self.tab.get_by_role("button", name=name, exact=True).click()

    def choose(self, label: str, option: str) -> None:
        self.tab.get_by_label(label, exact=True).select_option(option)

    def press(self, name: str) -> None:
        self.tab.get_by_role("button", name=name, exact=True).click()

    def says(self, words: str) -> None:
        """Wait for words on the page."""
        self.tab.get_by_text(words).first.wait_for()

    def pixels(self, plane: str = "axial") -> str:
        return self.canvas(plane).evaluate("canvas => canvas.toDataURL()")

    def upload(self, label: str, path: Path) -> None:
        self.tab.get_by_label(label).set_input_files(path)

    def download(self, name: str, folder: Path) -> Path:
        """Press a button of Keep and save what comes."""
        with self.tab.expect_download() as coming:
            self.press(name)
        path = folder / coming.value.suggested_filename
        coming.value.save_as(path)
        return path

    def bright_column(self, plane: str) -> float:
        """Where the brightest grey pixels of a canvas lie from left to right, 0…1."""
        return self.canvas(plane).evaluate(
            """canvas => {
                const pen = canvas.getContext("2d"), {width, height} = canvas;
                const {data} = pen.getImageData(0, 0, width, height);
                let sum = 0, count = 0;
                for (let y = 30; y < height - 30; y++) for (let x = 30; x < width - 30; x++) {
                    const i = 4 * (y * width + x);
                    if (data[i] > 240 && data[i + 1] > 240 && data[i + 2] > 240) { sum += x; count += 1; }
                }
                return count ? sum / count / width : -1;
            }"""
        )
