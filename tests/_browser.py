"""A headless Chromium, driven over a pair of pipes by the DevTools protocol."""

import json
import os
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120  # seconds for one answer: machines of CI are slow
# Chromium reads commands from descriptor 3 and answers on 4.
START = """\
import fcntl, os, sys
reading, writing = (fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3])
os.dup2(reading, 3)
os.dup2(writing, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
WATCHED = ("Page", "Runtime", "Log", "Network")


def program():
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def absence():
    """Return why tests without a Chromium are skipped: what `.ci/run` tried, or what to do."""
    tried = os.environ.get("NO_CHROMIUM")
    return f"no Chromium on this machine: {tried or 'apt-get install chromium'}"


class Browser:
    """One tab. `events` holds what the page reported since it was last opened."""

    def __init__(self, profile):
        to_browser, from_browser = os.pipe(), os.pipe()
        ends = to_browser[0], from_browser[1]
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, ends), program(), *options],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.writing, self.reading = to_browser[1], from_browser[0]
        self.pending, self.events, self.sent, self.session = b"", [], 0, {}
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self.session = {"sessionId": attached["sessionId"]}
            for domain in WATCHED:
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self):
        os.close(self.writing)  # the end of its input ends the browser
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.reading)

    def call(self, method, **parameters):
        """Send a command and return its result."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters, **self.session}
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, address, width=1200, dark=False):
        """Load a page in a window of this width."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script):
        """Evaluate a JavaScript expression in the page; wait for its value if it is a promise."""
        options = {"returnByValue": True, "awaitPromise": True}
        result = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def requests(self):
        """Return the addresses the page asked for."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self):
        """Return what the page wrote to the console, and exceptions."""
        told = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event["method"] in told]

    def _next(self):
        limit = time.monotonic() + PATIENCE
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.reading], [], [], max(0, limit - time.monotonic()))
            data = os.read(self.reading, 1 << 16) if ready else b""
            if not data:
                raise TimeoutError(f"no answer from {program()} within {PATIENCE} s, or it ended")
            self.pending += data
        message, _, self.pending = self.pending.partition(b"\0")
        return json.loads(message)
