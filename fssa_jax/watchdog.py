"""Warns where the program waits if nothing has finished for a while: a long compilation, or a device that hangs."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parent
_last = time.monotonic()


def finished() -> None:
    """To be called whenever a piece of work has finished: a call of the device, a batch, a file."""
    global _last
    _last = time.monotonic()


@contextlib.contextmanager
def watch(seconds: float = 60.0) -> Iterator[None]:
    """While the block runs, warns when nothing has finished for `seconds`, and again each time that doubles.

    The warning names the innermost line of this package that the main thread is in.
    """
    main, done = threading.get_ident(), threading.Event()
    finished()

    def look() -> None:
        seen, limit = _last, seconds
        while not done.wait(seconds / 10):
            if _last != seen:
                seen, limit = _last, seconds
            waited = time.monotonic() - seen
            if waited >= limit:
                limit = 2 * waited
                _log.warning("nothing has finished for %.0f s: the program waits in %s", waited, _place(main))

    thread = threading.Thread(target=look, daemon=True, name="watchdog")
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
