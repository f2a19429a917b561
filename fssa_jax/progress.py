"""What the program is doing: a bar on a terminal, lines in a log elsewhere, and where it waits if nothing finishes."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

from tqdm import tqdm

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parent
_FIRST, _AGAIN = 5.0, 15.0  # seconds until the first line of a log about a piece of work, and between lines
_last = time.monotonic()
_work: list["Work"] = []  # pieces of work under way, the outermost first


class Work:
    """A piece of work, such as a loop over texts: how much of it is done."""

    def __init__(self, name: str, total: int | None, unit: str, initial: int):
        self.name, self.total, self.unit = name, total, unit
        self.done, self._initial, self._notes = initial, initial, ""
        self.started = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=name,
            unit=f" {unit}",
            delay=1,
            leave=False,
            disable=None,
            file=sys.stderr,
        )

    def add(self, number: int = 1) -> None:
        """Counts finished units."""
        self.done += number
        self._bar.update(number)
        finished()

    def note(self, text: str) -> None:
        """A short text to show next to the numbers, such as the loss."""
        self._notes = text
        self._bar.set_postfix_str(text, refresh=False)

    @property
    def shown(self) -> bool:
        """Whether there is a bar on a terminal."""
        return not self._bar.disable

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def line(self) -> str:
        """One line for a log: what is done, how fast, and the time left."""
        seconds = time.monotonic() - self.started
        new = self.done - self._initial
        if not new:
            return f"{self.name}: started {seconds:.0f} s ago (compiling, or the first {self.unit})"
        of = f" of {self.total}" if self.total else ""
        parts = [f"{self.done}{of} {self.unit}", f"{new / seconds:.3g} per s"]
        if self.total:
            parts.append(f"{(self.total - self.done) * seconds / new:.0f} s left")
        return f"{self.name}: {', '.join(parts)}{f', {self._notes}' if self._notes else ''}"


@contextlib.contextmanager
def doing(name: str, total: int | None = None, unit: str = "steps", initial: int = 0) -> Iterator[Work]:
    """Shows a piece of work while the block runs; `add` counts what is done.

    Args:
      name: of the work.
      total: units in all, if known.
      unit: what is counted, in the plural.
      initial: units that were done before, by a run that is resumed.
    """
    work = Work(name, total, unit, initial)
    _work.append(work)
    try:
        yield work
    finally:
        work.close()
        _work.remove(work)


def each(items: Iterable[_T], name: str, unit: str, total: int | None = None) -> Iterator[_T]:
    """The items, shown as a piece of work."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with doing(name, total, unit) as work:
        for item in items:
            yield item
            work.add()


def finished() -> None:
    """To be called whenever a piece of work has finished: a call of the device, a batch, a file."""
    global _last
    _last = time.monotonic()


@contextlib.contextmanager
def watch(seconds: float = 60.0, first: float = _FIRST, again: float = _AGAIN) -> Iterator[None]:
    """While the block runs, a thread says what is going on.

    * Where stderr is no terminal: a line about the innermost piece of work, or the place in the code, after `first`
      seconds and every `again` seconds.
    * Anywhere: a warning when nothing has finished for `seconds`, and again each time that doubles. It names the
      innermost line of this package that the main thread is in: a long compilation, or a device that hangs.
    """
    main, done = threading.get_ident(), threading.Event()
    finished()

    def look() -> None:
        seen, limit = _last, seconds
        said = time.monotonic() - again + first
        while not done.wait(min(seconds / 10, first / 5)):
            now = time.monotonic()
            if now - said >= again and not sys.stderr.isatty():
                said = now
                work = _work[-1:]  # one access: the main thread may end it meanwhile
                _log.info("%s", work[0].line() if work else f"at work in {_place(main)}")
            if _last != seen:
                seen, limit = _last, seconds
            waited = now - seen
            if waited >= limit:
                limit = 2 * waited
                _log.warning("nothing has finished for %.0f s: the program waits in %s", waited, _place(main))

    thread = threading.Thread(target=look, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _place(thread: int) -> str:
    """FILE:LINE (FUNCTION) of the innermost frame of a thread that is in this package."""
    frame: FrameType | None = sys._current_frames().get(thread)
    outermost = frame
    while frame is not None and not Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame = frame.f_back
    frame = frame or outermost
    if frame is None:
        return "an unknown place"
    file = Path(frame.f_code.co_filename)
    name = file.relative_to(_PACKAGE.parent) if file.is_relative_to(_PACKAGE) else file.name
    return f"{name}:{frame.f_lineno} ({frame.f_code.co_name})"
