"""A headless Chromium for the tests, driven through the W3C WebDriver protocol of chromedriver."""

import base64
import json
import re
import shutil
import subprocess
import urllib.request

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = None if CHROMIUM and DRIVER else "no Chromium here: install chromium and chromedriver (Debian: its package " \
                                           "chromium-driver)"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
         "--window-size=1200,1000")


class Browser:
    """A browser with an empty profile in `profile`, closed at the end of a `with`."""

    def __init__(self, profile):
        self.process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True)
        self.http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        started = (re.search(r"success.* on port (\d+)", line) for line in self.process.stdout)
        port = next(int(found[1]) for found in started if found)
        self.address = f"http://127.0.0.1:{port}/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self.address += "/" + self._call("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self._call("/url", {"url": "about:blank"})
        self.console(), self.requests()  # those of the browser's own first page

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._call("", method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait(10)
            self.process.stdout.close()

    def open(self, path):
        self._call("/url", {"url": path.as_uri()})

    def run(self, script):
        """What a script returns, run in the page."""
        return self._call("/execute/sync", {"script": script, "args": []})

    def press(self, keys):
        """Type keys where the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def console(self):
        """What the browser complained of since the last call: lines of its console."""
        return [entry["message"] for entry in self._call("/se/log", {"type": "browser"})]

    def requests(self):
        """Addresses that were asked for since the last call, by anything in the page."""
        events = [json.loads(entry["message"])["message"] for entry in self._call("/se/log", {"type": "performance"})]
        return [event["params"]["request"]["url"] for event in events
                if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self):
        return base64.b64decode(self._call("/screenshot", method="GET"))

    def print_pdf(self):
        return base64.b64decode(self._call("/print", {}))

    def _call(self, path, content=None, method="POST"):
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"}, method=method)
        with self.http.open(request, timeout=60) as answer:
            return json.load(answer)["value"]
