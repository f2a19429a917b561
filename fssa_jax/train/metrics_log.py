"""metrics.jsonl and TensorBoard events of one run."""

import contextlib
import json
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.summary import scalar

from fssa_jax.errors import UserError
from fssa_jax.files import write_text


class MetricsLog:
    """metrics.jsonl and TensorBoard events; entries that a killed run wrote after the resumed step are removed.

    Both are written synchronously, without a thread: a full disk is then an error of the step that hit it.
    """

    def __init__(self, directory: Path, step: int):
        self._path = directory / "metrics.jsonl"
        kept = [line for line in _lines(self._path) if _step_of(line) <= step]
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        with self._as_user_errors():
            (directory / "tensorboard").mkdir(exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
            self._events = EventsWriter(str(directory / "tensorboard" / "events"))
            if step:  # TensorBoard hides entries of an earlier run from this step on
                start = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
            self._events.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line of metrics.jsonl and one TensorBoard scalar per value.

        Raises:
          UserError: the disk is full, or gone.
        """
        with self._as_user_errors():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._events.flush()

    def close(self) -> None:
        """Closes both files; write errors were raised before."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError, ValueError):
                file.close()

    @contextlib.contextmanager
    def _as_user_errors(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); free disk space and run the same command again"
            ) from error


def last_step(directory: Path) -> int:
    """The last step that was logged in a directory; 0 if none was."""
    steps = [_step_of(line) for line in _lines(directory / "metrics.jsonl")]
    return int(max((step for step in steps if step < float("inf")), default=0))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _step_of(line: str) -> float:
    try:
        step = json.loads(line)["step"]
        return step if isinstance(step, int) else float("inf")
    except (ValueError, KeyError, TypeError, RecursionError):  # the last line of a killed run may be cut off
        return float("inf")
