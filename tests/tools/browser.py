"""Pages as Chromium shows them, where there is one."""

import re
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
_PROBE = "<script>document.body.setAttribute('data-wide', document.documentElement.scrollWidth - innerWidth)</script>"


class Shown(NamedTuple):
    said: list[str]  # on the console
    shot: np.ndarray  # (H, W) grey levels of its top
    beyond: int  # pixels by which something is wider than the window


class Browser:
    """Raises the exception of a skipped test where there is none."""

    def __init__(self, folder):
        self.folder, self.path = folder, next(filter(None, map(shutil.which, _NAMES)), None)
        if self.path is None:
            pytest.skip("needs Chromium")

    def show(self, page, width):
        """A page in a file, in a window of that many pixels."""
        shot, probed = self.folder / "shot.png", self.folder / "probed.html"
        done = self._run(width, f"--screenshot={shot}", page.as_uri())
        said = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
        probed.write_text(page.read_text("utf-8") + _PROBE, "utf-8")
        told = re.search(rb'data-wide="(-?\d+)"', self._run(width, "--dump-dom", probed.as_uri()).stdout)
        return Shown(said, np.asarray(Image.open(shot).convert("L")).astype(int), int(told[1]))

    def _run(self, width, *words):
        flags = [*_FLAGS, f"--user-data-dir={self.folder / 'profile'}", "--enable-logging=stderr"]
        return subprocess.run(
            [self.path, *flags, f"--window-size={width},900", *words], capture_output=True, timeout=120
        )


def assert_shown_well(folder, pages):
    """Nothing is said on the console, nothing is wider than the window, and no page is empty, at two widths."""
    browser, faulty = Browser(folder), folder / "faulty.html"
    faulty.write_text("<body><script>console.error('a fault')</script><p style='width: 900px'>wide</p>")
    found = browser.show(faulty, 400)
    assert any("a fault" in line for line in found.said) and found.beyond > 0  # both would be seen
    for page in pages:
        for width in (1280, 390):
            found = browser.show(page, width)
            assert found.said == [] and found.beyond <= 0, (page.name, width)
            assert found.shot.shape[1] == width and found.shot.std() > 5
