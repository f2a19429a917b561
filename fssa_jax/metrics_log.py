"""metrics.jsonl and TensorBoard events of one run."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from fssa_jax.errors import UserError
from fssa_jax.files import write_text


class MetricsLog:
    """metrics.jsonl and TensorBoard events; what a killed run wrote past the resumed step is removed."""

    def __init__(self, directory: Path, step: int):
        self._path = directory / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and one TensorBoard scalar a value.

        Raises:
          UserError: the disk is full, or gone.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}); make room and start again") from error
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the last line of a killed run may be cut off
        return float("inf")
