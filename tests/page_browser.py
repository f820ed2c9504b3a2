"""A headless Chromium spoken to over its debugging pipe: real keys, media, and its complaints.

The Chrome DevTools Protocol over --remote-debugging-pipe: JSON messages that end with a zero byte,
read by the browser from descriptor 3 and written to descriptor 4.
"""

import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
SLOWEST_S = 60


class Browser:
    """One page of one browser; `complaints` and `requests` are those since the last `open`."""

    def __init__(self, profile):
        to_read, self.to_browser = os.pipe()
        self.from_browser, to_write = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
        command = f"exec {CHROMIUM} {flags} --user-data-dir={profile} about:blank"
        command += f" 3<&{to_read} 4>&{to_write} 2>/dev/null"
        fds = (to_read, to_write)
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=fds)
        for fd in fds:
            os.close(fd)
        self.buffer, self.count, self.session, self.events = b"", 0, None, []
        (target,) = [
            t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"
        ]
        attach = {"targetId": target["targetId"], "flatten": True}
        self.session = self.send("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        end = time.monotonic() + SLOWEST_S
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            data = os.read(self.from_browser, 1 << 20)
            assert data, "the browser is gone"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, url, width=1280, height=900, dark=False, script=True, media=""):
        mobile = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events = []
        self.send("Page.navigate", url=url)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())

    def value(self, expression):
        """Return what a JavaScript expression gives; promises are awaited."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.send("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, text=""):
        code = {"Enter": 13, " ": 32, "Tab": 9}.get(key, 0)
        event = {"key": key, "windowsVirtualKeyCode": code, "code": "Space" if key == " " else key}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text):
        self.send("Input.insertText", text=text)

    @property
    def complaints(self):
        """What went to the console as a warning or an error, and what was thrown."""
        self.send("Runtime.evaluate", expression="1")  # whatever came before has arrived
        found = []
        for event in self.events:
            method, params = event["method"], event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"])
            if method == "Runtime.consoleAPICalled" and params["type"] != "log":
                found.append(params)
            if method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
                found.append(params["entry"])
        return found

    @property
    def requests(self):
        """The addresses that the page asked for, those within the page itself left out."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    def close(self):
        self.session = None
        self.send("Browser.close")
        self.process.wait(SLOWEST_S)
