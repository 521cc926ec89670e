"""A page in headless Chromium, driven through the DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
# An element whose text is wider than its box and which is no scroller; what lies in a scroller may
# be wide.
OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('svg, dialog:not([open])') || !e.checkVisibility({contentVisibilityAuto: true})) return false;
  const own = getComputedStyle(e), scroller = e.parentElement.closest('.scroll, .formula');
  if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth && own.overflowX !== 'auto' && own.display !== 'inline')
    return true;
  const box = e.getBoundingClientRect();
  return !scroller && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 60)}`)
"""


class Tab:
    """One tab; what it asked of the network and what it complained about is kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._id = socket, 0
        self._events: list[dict[str, Any]] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._id += 1
        self._socket.send(json.dumps({"id": self._id, "method": method, "params": params}))
        while (message := self._receive()).get("id") != self._id:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return dict(message["result"])

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Show ``page`` at a width in CSS pixels under a colour scheme, and wait until it has
        loaded.
        """
        self._events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode={"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}[key],
            )

    def screenshot(self, path: Path) -> Path:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    @property
    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, but for itself and what it holds."""
        sent = [e["params"] for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return [
            p["request"]["url"]
            for p in sent
            if not p["request"]["url"].startswith(("data:", p["documentURL"]))
        ]

    @property
    def complaints(self) -> list[str]:
        """What the console holds: errors, warnings, violations of the content security policy."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [
            json.dumps(event["params"])[:400] for event in self._events if event["method"] in kinds
        ]

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=60))
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def chromium(folder: Path) -> Iterator[Tab]:
    """A fresh browser with its profile in ``folder``, gone afterwards."""
    process = subprocess.Popen(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = _port(process, folder / "DevToolsActivePort")
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            target = next(t for t in json.load(answer) if t["type"] == "page")
        with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait()


def _port(process: subprocess.Popen[bytes], file: Path) -> int:
    while not file.exists() or not file.read_text().strip():
        if process.poll() is not None:
            raise RuntimeError(f"{CHROMIUM} ended at once with exit code {process.returncode}")
        time.sleep(0.02)
    return int(file.read_text().split()[0])
