"""What an interrupted training of a perceptron goes on from: one file, replaced in one go."""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import Interrupted, L3PruneError
from l3prune.files import atomic_write
from l3prune.interruption import Signals

#: Between two checkpoints of a training that nobody interrupts.
MINUTES = 2.0

#: A file's arrays together. Someone else's file could unpack to more than there is memory.
MAX_BYTES = 4 * 2**30


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    history : list of dict
        One row for each epoch that has ended.
    rows : int
        Rows of the next epoch that were trained on.
    sums : np.ndarray, (2,) float64
        Loss and hits over these rows.
    variables, best : sequence of np.ndarray
        Weights and the optimizer's variables; the weights of the best epoch so far.

    Examples
    --------
    >>> Progress().rows
    0
    """

    history: list[dict[str, float]] = field(default_factory=list)
    rows: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(2))
    variables: Sequence[np.ndarray] = ()
    best: Sequence[np.ndarray] = ()


class Checkpoint:
    """The file that a training is kept in, every two minutes and when a signal asks it to end.

    Parameters
    ----------
    path : pathlib.Path
        An npz file without pickles. Its folder is made when it is first written.
    config : dict
        All that the training depends on, as JSON has it.

    Examples
    --------
    >>> Checkpoint(Path("/nowhere/training.npz"), {"seed": 0}).load() is None
    True
    """

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.path = path
        self.config = dict(config)
        self._written = time.monotonic()

    def look(self, progress: Progress, variables: Sequence[Any], signals: Signals) -> None:
        """Write the file if it is time or a signal came, which ends the training.

        Parameters
        ----------
        progress : Progress
            Without its `variables`, which are read only when they are written.
        variables : sequence of tf.Variable
        signals : Signals

        Raises
        ------
        Interrupted
            A signal came; the file is written.
        L3PruneError
            The file cannot be written.
        """
        late = time.monotonic() - self._written >= 60 * MINUTES
        if signals.first is None and not late:
            return
        progress.variables = [variable.numpy() for variable in variables]
        arrays: dict[str, Any] = {
            "config": _encoded(self.config),
            "history": _encoded(progress.history),
            "rows": np.array(progress.rows),
            "sums": progress.sums,
            **_numbered("variable", progress.variables),
            **_numbered("best", progress.best),
        }
        with atomic_write(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        self._written = time.monotonic()
        if signals.first is not None:
            epoch = len(progress.history) + 1
            raise Interrupted(
                f"stopped by {signals.first.name} in epoch {epoch} of {self.path.parent}; "
                "the same command goes on from there"
            )

    def load(self) -> Progress | None:
        """What the file holds, None if there is none; remains of a killed process are removed.

        Raises
        ------
        L3PruneError
            It is damaged, or of another configuration.
        """
        for remains in self.path.parent.glob(f".{self.path.stem}-????????{self.path.suffix}"):
            remains.unlink(missing_ok=True)
        if not self.path.is_file():
            return None
        try:
            arrays = read_arrays(self.path)
            config, history = (json.loads(arrays[name].tobytes()) for name in ("config", "history"))
            check_config(config, self.config, self.path)
            sums, rows = arrays["sums"], int(arrays["rows"])
            numbers = [row["epoch"] for row in history if row["loss"] < np.inf]
            if sums.shape != (2,) or rows < 0 or numbers != list(range(1, len(history) + 1)):
                raise ValueError("its history is not that of a training")
            groups = (_group(arrays, kind) for kind in ("variable", "best"))
            return Progress(history, rows, sums, *groups)
        except UNREADABLE as error:
            raise self.damaged(error) from error

    def damaged(self, problem: object) -> L3PruneError:
        """The error that says that the file cannot be gone on from."""
        return L3PruneError(f"{self.path} is no checkpoint ({problem}); delete it to train anew")

    def remove(self) -> None:
        """Remove the file of a training whose result is written."""
        self.path.unlink(missing_ok=True)


#: What reading an npz file of any content raises.
UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, EOFError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError),
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file: finite, no pickles, 4 GiB at most; else one of `UNREADABLE`.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npz"
    >>> np.savez(path, x=np.zeros(2))
    >>> read_arrays(path)
    {'x': array([0., 0.])}
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(item.file_size for item in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"it unpacks to {size / 2**30:.1f} GiB")
    with np.load(path, allow_pickle=False) as arrays:
        found = dict(arrays)
    for name, array in found.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"its {name} is not finite")
    return found


def check_config(found: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on in a folder with what was made with another configuration.

    Examples
    --------
    >>> check_config({"seed": 0}, {"seed": 1}, Path("results/result.json"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: results has a result with {'seed': 0}, this run has {'seed': 1}...
    """
    keys = [*config, *(key for key in found if key not in config)]
    changed = [key for key in keys if (key, found.get(key)) != (key, config.get(key))]
    if changed:
        was, now = ({key: source.get(key) for key in changed} for source in (found, config))
        raise L3PruneError(
            f"{path.parent} has a result with {was}, this run has {now}; "
            "choose another output folder"
        )


def _encoded(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _numbered(kind: str, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{kind}-{number:04d}": value for number, value in enumerate(values)}


def _group(arrays: dict[str, np.ndarray], kind: str) -> list[np.ndarray]:
    return [array for name, array in sorted(arrays.items()) if name.startswith(f"{kind}-")]
