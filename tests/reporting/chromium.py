"""A headless Chromium driven over its debugging pipe: no other package, no port, no network."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    "--headless=new",
    "--remote-debugging-pipe",
    # Root has no sandbox; the pages are our own.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
FROM_BROWSER, TO_BROWSER = 4, 3
"""Descriptors that Chromium writes to and reads from under `--remote-debugging-pipe`."""
SECONDS = 150
"""For an answer of the browser: a busy machine draws ten thousand points slowly."""


def find() -> str | None:
    """The program's path; `PLURALIGN_CHROMIUM` names another."""
    named = os.environ.get("PLURALIGN_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running browser; a context that ends it."""

    def __init__(self, program: str | None = None) -> None:
        self._profile = tempfile.mkdtemp(prefix="report-chromium-")
        theirs_in, ours_out = _high_pipe()
        ours_in, theirs_out = _high_pipe()

        def place() -> None:
            os.dup2(theirs_in, TO_BROWSER)
            os.dup2(theirs_out, FROM_BROWSER)

        self._process = subprocess.Popen(
            [program or find() or "chromium", *ARGUMENTS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place,
            pass_fds=(TO_BROWSER, FROM_BROWSER),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        self._unread = b""
        self._number = 0
        self.events: deque[dict[str, Any]] = deque()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._read(deadline)
            if answer is None:
                raise TimeoutError(f"no answer to {method} in {SECONDS} s")
            if answer.get("id") != self._number:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            result: dict[str, Any] = answer["result"]
            return result

    def wait_for(self, event: str, session: str) -> dict[str, Any]:
        """The next event of a name, among those that came or will."""
        deadline = time.monotonic() + SECONDS
        seen = 0
        while True:
            while seen < len(self.events):
                found = self.events[seen]
                seen += 1
                if found.get("method") == event and found.get("sessionId") == session:
                    return found
            message = self._read(deadline)
            if message is None:
                raise TimeoutError(f"no {event} in {SECONDS} s")
            self.events.append(message)

    def page(self, **viewport: Any) -> Page:
        """A new page; `width`, `height`, `dark`, `phone` as of `Page.look`."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        page.look(**viewport)
        return page

    def _read(self, deadline: float) -> dict[str, Any] | None:
        while b"\0" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                return None
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._unread += part
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Page:
    """One page of a browser, with what it said and asked for."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command to this page."""
        return self._browser.call(method, self._session, **params)

    def look(self, width: int = 1280, height: int = 900, *, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the window, the colours that the reader asks for, and whether it is a phone."""
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        """Load a file from disk, as a reader does, and wait until it is there."""
        self._browser.events.clear()
        # Only the page in front is told of the pointer.
        self.call("Page.bringToFront")
        self.call("Page.navigate", url=path.absolute().as_uri())
        self._browser.wait_for("Page.loadEventFired", self._session)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def show(self, selector: str) -> None:
        """Scroll to an element, after its charts were scrolled to and drawn: they are when they come into view."""
        charts = f"[...document.querySelectorAll({selector!r} + ', ' + {selector!r} + ' .chart')]"
        charts += ".filter((one) => one.matches('.chart') && one.offsetParent)"
        for number in range(self.run(f"{charts}.length")):
            self.run(f"{charts}[{number}].scrollIntoView({{block: 'center'}})")
            self.until(f"{charts}[{number}].dataset.drawn")
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def move(self, x: float, y: float) -> None:
        """Put the pointer somewhere in the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def hover(self, x: float, y: float, condition: str) -> None:
        """Put the pointer somewhere, and wait until an expression is true."""
        self.move(x, y)
        self.until(condition)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button somewhere in the window."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def put(self, selector: str, value: str) -> None:
        """Give a field or a select a value, as a reader does."""
        field = f"document.querySelector({selector!r})"
        self.run(
            f"{field}.value = {value!r}; ['input', 'change'].forEach((one) => {field}.dispatchEvent(new Event(one)))"
        )

    def all_texts(self, selector: str) -> list[str]:
        """The texts of all elements that fit."""
        found: list[str] = self.run(f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)")
        return found

    def press(self, key: str) -> None:
        """Press and release a key of the keyboard."""
        code = {"Enter": 13, "Escape": 27}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def close(self) -> None:
        """Close it."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def screenshot(self, path: Path, *, whole: bool = False, selector: str | None = None) -> None:
        """Write a PNG of the window, of one element or of the whole page."""
        clip: dict[str, Any] = {}
        if selector:
            box = self.run(
                f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
                " return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}; })()"
            )
            clip = {"clip": {**box, "scale": 1}}
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole or bool(clip), **clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        """What a printer would get."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings: of the program, of the console, of the policy."""
        self.run("0")
        found = []
        for event in self._mine():
            method, params = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(" ".join(str(one.get("value")) for one in params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself included."""
        self.run("0")
        return [
            event["params"]["request"]["url"]
            for event in self._mine()
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _mine(self) -> list[dict[str, Any]]:
        return [
            event for event in self._browser.events if event.get("sessionId") == self._session and "method" in event
        ]


def _high_pipe() -> tuple[int, int]:
    """A pipe whose ends are not the descriptors that the browser wants for itself."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
