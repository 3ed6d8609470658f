"""Stop strings: the end of an answer, found across the borders of tokens."""

import re
from collections.abc import Sequence

from zamba_lm.errors import ZambaError


class StopStrings:
    """Passes text on up to the first stop string and holds back what may still become one.

    However the text is cut into pieces, what ``push`` and ``flush`` give back, joined, is the text before the leftmost stop
    string in it, or all of it. So a stop string that is complete waits while another that began before it may still
    become whole. Held back is never more than the longest stop string less one character.
    """

    def __init__(self, stops: Sequence[str] | str):
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self._stops:
            if not isinstance(stop, str) or not stop:
                raise ZambaError(f"stop string {stop!r}: expected a string of at least one character")
        self._pattern = re.compile("|".join(map(re.escape, self._stops)) or "(?!)")
        self._longest = max(map(len, self._stops), default=1)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is now sure to stand before any stop string; nothing more once ``stopped``."""
        if self.stopped:
            return ""
        text = self._held + text
        open_from = self._open_from(text)
        found = self._pattern.search(text)
        if found and found.start() <= open_from:
            return self._stop(text[: found.start()])
        self._held = text[open_from:]
        return text[:open_from]

    def flush(self) -> str:
        """The text held back, at the end of the answer; it is cut where a stop string is complete in it."""
        found = self._pattern.search(self._held)
        if found:
            return self._stop(self._held[: found.start()])
        text, self._held = self._held, ""
        return text

    def _stop(self, text: str) -> str:
        self.stopped, self._held = True, ""
        return text

    def _open_from(self, text: str) -> int:
        """Where the longest ending of the text starts that is the beginning of a stop string; the text's length if none is."""
        first = max(0, len(text) - self._longest + 1)
        starts = (at for at in range(first, len(text)) if any(stop.startswith(text[at:]) for stop in self._stops))
        return next(starts, len(text))
