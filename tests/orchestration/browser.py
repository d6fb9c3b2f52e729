"""A real browser, Debian's Chromium without a window, driven over a pipe: no driver, no port.

`apt-get install chromium` brings it. The protocol is Chromium's own (DevTools); a message is JSON
with a zero byte at its end.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 60.0
"""Seconds that a page has for what a test waits for."""


class Page:
    """One tab."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._left, self._sent = b"", 0
        self._session: dict[str, str] = {}
        tab = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        self._call("Page.enable")

    def resize(self, width: int, height: int) -> None:
        """In CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """What a JavaScript expression gives, as JSON has it; an error in it is raised."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = PATIENCE_S) -> Any:
        """What the expression gives as soon as that is true; AssertionError with the page's text.

        An error while the page is being built counts as not yet. The value must be JSON's.
        """
        deadline = time.monotonic() + seconds
        while not (found := self.run(f"(() => {{ try {{ return {script} }} catch {{ }} }})()")):
            if time.monotonic() > deadline:
                raise AssertionError(f"{script} did not come true: {self.run(TEXT)[:3000]}")
            time.sleep(0.2)
        return found

    def picture(self, file: Path, **clip: float) -> None:
        """A PNG of the window, or of the part `x, y, width, height`."""
        part = {"clip": {**clip, "scale": 1}} if clip else {}
        data = self._call("Page.captureScreenshot", format="png", **part)["data"]
        file.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **params: Any) -> Any:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            more = os.read(self._from, 1 << 20)
            assert more, "the browser has ended"
            self._left += more
        message, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


TEXT = "document.body ? document.body.innerText : ''"


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A tab of a new browser with an empty profile."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program, "This test needs Chromium: apt-get install -y chromium"
    (to_read, to_write), (from_read, from_write) = _pipe(), _pipe()
    # The browser reads from its file descriptor 3 and writes to 4.
    script = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
    options = [*QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    with (profile.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", script, program, *options, "about:blank"],
            pass_fds=(to_read, from_write),
            stdout=log,
            stderr=log,
        )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(to_write, from_read)
    finally:
        os.close(to_write)  # that ends it
        os.close(from_read)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pipe() -> tuple[int, int]:
    """Both ends, with numbers that are not in the way of 3 and 4."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
