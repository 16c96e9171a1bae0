"""Folders of runs: a new one for each, what a run was told, whether it can go on. No TensorFlow."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import new_folder, read_json, write_json

#: What the run was told, in its folder.
CONFIG = "config.json"

#: Arguments that say how a run is carried out, not what it is.
_ASIDE = ("config", "continue_model_dir", "quiet")


def subset_name(train_data_dir: str) -> str:
    """What EdgeL3 calls a folder of training data: music of music_train.

    Examples
    --------
    >>> subset_name("data/music_train")
    'music'
    """
    return Path(train_data_dir).resolve().name.rsplit("_", 1)[0]


@contextlib.contextmanager
def new_run_dir(parent: Path, run_name: str | None = None) -> Iterator[Path]:
    """A folder that no other run has, made below `parent`.

    It is removed when the block raises and has written nothing into it.

    Parameters
    ----------
    parent : pathlib.Path
    run_name : str or None
        None takes the time.

    Raises
    ------
    L3PruneError
        There is a run of this name, or the folder cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> with new_run_dir(Path(tempfile.mkdtemp()), "first") as run_dir:
    ...     run_dir.name
    'first'
    """
    with new_folder(parent):
        run_dir = _make_free(parent, run_name)
        try:
            yield run_dir
        except BaseException:
            with contextlib.suppress(OSError):
                run_dir.rmdir()
            raise


def check_run_name(run_name: str | None) -> None:
    """Refuse what is not the name of one folder.

    Examples
    --------
    >>> check_run_name("a/b")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: --run-name 'a/b' is not the name of one folder
    """
    if run_name is not None and (run_name in ("", ".", "..") or Path(run_name).name != run_name):
        raise ParameterError(f"--run-name {run_name!r} is not the name of one folder")


def told(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a run, for its config.json.

    Examples
    --------
    >>> told(argparse.Namespace(seed=3, quiet=True, budget=None))
    {'seed': 3}
    """
    return {
        name: value
        for name, value in vars(args).items()
        if value is not None and value is not False and name not in _ASIDE
    }


def write_config(
    run_dir: Path,
    command: Sequence[str],
    arguments: Mapping[str, Any],
    versions: Mapping[str, str],
    further: Mapping[str, Any] | None = None,
) -> None:
    """Write what the run was told; when it is continued otherwise, keep what it was told before.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_config(folder, ["train"], {"seed": 1}, {})
    >>> write_config(folder, ["train"], {"seed": 2}, {})
    >>> len(read_json(folder / CONFIG)["earlier"])
    1
    """
    config = {
        "command": list(command),
        "arguments": dict(arguments),
        "versions": dict(versions),
        **(further or {}),
    }
    if (run_dir / CONFIG).is_file():
        before = read_json(run_dir / CONFIG)
        if before.get("arguments") == config["arguments"]:
            return
        config["earlier"] = [*before.pop("earlier", []), before]
    write_json(run_dir / CONFIG, config)


def check_begun(run_dir: Path, now: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse a folder whose run was told otherwise in what `names` say.

    Raises
    ------
    L3PruneError
        There is no run, or its config.json is damaged.
    ParameterError
        Something differs.

    Examples
    --------
    >>> check_begun(Path("/nowhere"), {}, ())
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere has no config.json, so there is no run to continue ...
    """
    check_file(run_dir, CONFIG)
    config = read_json(run_dir / CONFIG)
    before = config.get("arguments") if isinstance(config, dict) else None
    if not isinstance(before, dict):
        raise L3PruneError(f"{run_dir / CONFIG} is damaged: it has no arguments of a run")
    for name in names:
        if before.get(name) != now.get(name):
            raise ParameterError(
                f"the run in {run_dir} was begun with {name}={before.get(name)!r}, not "
                f"{now.get(name)!r}; continue it with its own arguments (see {run_dir / CONFIG})"
            )


def check_file(run_dir: Path, name: str) -> None:
    """Refuse a folder without a file that a run to continue has.

    Examples
    --------
    >>> check_file(Path("/nowhere"), "history.csv")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere has no history.csv, so there is no run to continue ...
    """
    if not (run_dir / name).is_file():
        raise L3PruneError(
            f"{run_dir} has no {name}, so there is no run to continue there; give the folder of a "
            "training run"
        )


def _make_free(parent: Path, run_name: str | None) -> Path:
    name = run_name or datetime.now().strftime("%Y%m%d%H%M%S")
    for attempt in range(1000):
        run_dir = parent / (f"{name}-{attempt}" if attempt else name)
        try:
            run_dir.mkdir()
        except OSError as error:
            if not isinstance(error, FileExistsError):
                raise L3PruneError(f"cannot make the folder {run_dir}: {error.strerror}") from error
            if run_name and run_dir.is_dir() and not any(run_dir.iterdir()):
                return run_dir  # of a run that was killed before it had written anything
            if run_name:
                raise L3PruneError(
                    f"{run_dir} exists; give another --run-name, or --continue-model-dir"
                ) from None
            continue  # jobs of an array start in the same second
        return run_dir
    raise L3PruneError(f"no free name for a run in {parent}")
