"""The real WebUI with its page, and not over its API only."""

from __future__ import annotations

import time

from .harness import WebUI


class WithPage(WebUI):
    """With its page, a WebUI or a fork must not be asked anything before it is up: a request between the launch of
    the page and that of the API starts the app too early, and the process ends."""

    def _wait(self, deadline: float) -> None:
        self.says("Startup time", 1, deadline)
        super()._wait(deadline)

    def says(self, text: str, times: int, deadline: float) -> bool:
        """Waits until the log has ``text`` so often."""
        while self.log.count(text) < times and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.3)
        return self.log.count(text) >= times
