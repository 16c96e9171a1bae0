"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from l3prune.errors import L3PruneError, ParameterError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path; rename it to `path` when the block ends without an exception.

    Parameters
    ----------
    path : str or path-like
        The file to write. Its folder is made if it is missing.

    Yields
    ------
    temporary : pathlib.Path
        A new empty file in the same folder and with the same ending (some writers choose their
        format by it). It is removed when the block raises.

    Raises
    ------
    L3PruneError
        The folder cannot be made or written to.

    Examples
    --------
    >>> folder = tempfile.mkdtemp()
    >>> with atomic_write(Path(folder) / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> (Path(folder) / "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix
        )
    except OSError as error:
        raise L3PruneError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; give them what open() would.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise L3PruneError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and its parents; an existing one is fine.

    Raises
    ------
    L3PruneError
        It cannot be made, or a file has its name.

    Examples
    --------
    >>> make_folder(Path(tempfile.mkdtemp()) / "a" / "b").is_dir()
    True
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise L3PruneError(
            f"cannot make the folder {path}: {error.strerror}; choose a folder you can write to"
        ) from error
    if not os.access(path, os.W_OK):
        raise L3PruneError(f"cannot write to the folder {path}; choose one you can write to")
    return path


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder for the block; when it raises, remove the folders made that are still empty.

    Examples
    --------
    >>> parent = Path(tempfile.mkdtemp())
    >>> with contextlib.suppress(L3PruneError), new_folder(parent / "a" / "b"):
    ...     raise L3PruneError("bad input")
    >>> list(parent.iterdir())
    []
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


def claim_folder(folder: str | os.PathLike[str], record: str, settings: Mapping[str, Any]) -> None:
    """Write the settings of what a folder is to hold into it, or find the same ones there.

    Parameters
    ----------
    folder : str or path-like
        New, empty, or claimed earlier with the same settings.
    record : str
        Name of the JSON file that holds the settings.
    settings : dict
        What JSON has types for.

    Raises
    ------
    ParameterError
        The folder was claimed with other settings.
    L3PruneError
        The folder holds something else, or cannot be written to.

    Examples
    --------
    >>> folder = tempfile.mkdtemp()
    >>> claim_folder(folder, "corpus.json", {"seed": 1})
    >>> claim_folder(folder, "corpus.json", {"seed": 1})
    """
    folder = Path(folder)
    if (folder / record).exists():
        found = read_json(folder / record)
        if found != settings:
            known = found if isinstance(found, dict) else {}
            differences = ", ".join(
                f"{name}={known.get(name)!r} there, {settings.get(name)!r} here"
                for name in {**settings, **known}
                if known.get(name) != settings.get(name)
            )
            raise ParameterError(
                f"{folder} was made with other settings ({differences or 'unknown'});"
                " repeat its settings, or choose another folder"
            )
        return
    make_folder(folder)
    # A kill at the very first file can leave its temporary, which begins with this.
    remains = f".{Path(record).stem}-"
    foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith(remains))
    if foreign:
        raise L3PruneError(
            f"{folder} is not empty and holds no {record} (it holds {foreign[0]});"
            " choose a new or an empty folder"
        )
    write_json(folder / record, settings)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file; False, too, for names that the system refuses to look up.

    Examples
    --------
    >>> is_file("x" * 5000)
    False
    """
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def find_files(folder: str | os.PathLike[str], endings: Sequence[str]) -> list[Path]:
    """Files below a folder, at any depth, by ending whatever its case, in sorted order.

    Hidden files are passed over.

    Raises
    ------
    L3PruneError
        The folder does not exist.

    Examples
    --------
    >>> find_files("/nowhere", [".wav"])
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise L3PruneError(f"no such folder: {folder}")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()
    )


def find_inputs(inputs: Sequence[str], endings: Sequence[str], kind: str) -> list[Path]:
    """The files that a command's arguments name: each itself, and those below each folder.

    Parameters
    ----------
    inputs : sequence of str
    endings : sequence of str
        Of files that are looked for in folders.
    kind : str
        What they are, for the message.

    Raises
    ------
    L3PruneError
        No such file or folder, or no file at all.

    Examples
    --------
    >>> find_inputs(["/nowhere/a.wav"], [".wav"], "audio")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such file or folder: /nowhere/a.wav
    """
    files: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            files += find_files(given, endings)
        elif given.exists():
            files.append(given)
        else:
            raise L3PruneError(f"no such file or folder: {given}")
    if not files:
        raise L3PruneError(f"no {kind} files ({', '.join(endings[:4])}, …) in {', '.join(inputs)}")
    return files


def check_names(paths: Iterable[Path]) -> None:
    """Refuse names that no text file can hold.

    Examples
    --------
    >>> check_names([Path(os.fsdecode(b"\\xff.mp4"))])
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: rename b'\\xff.mp4'; its name is not UTF-8
    """
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise L3PruneError(f"rename {os.fsencode(path)!r}; its name is not UTF-8") from error


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Let no other process into the same block with the same folder, which has to exist.

    Where a file system knows no locks, nothing is held.

    Raises
    ------
    L3PruneError
        Another one is there.

    Examples
    --------
    >>> folder = tempfile.mkdtemp()
    >>> with locked(folder), locked(folder):
    ...     pass
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: another run is at work in /...; wait until it has ended
    """
    import filelock

    lock = filelock.FileLock(Path(folder) / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise L3PruneError(
            f"another run is at work in {folder}; wait until it has ended"
        ) from error
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release()


def fingerprint(paths: Sequence[Path], **settings: float) -> str:
    """Changes when files, by name, size and time, or settings change.

    Examples
    --------
    >>> fingerprint([], hop_size=0.5) == fingerprint([], hop_size=0.1)
    False
    """
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([files, settings]).encode()).hexdigest()[:16]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Examples
    --------
    >>> path = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(path, {"seed": 1})
    >>> read_json(path)
    {'seed': 1}
    """
    text = json.dumps(value, indent=2, allow_nan=False, default=_plain)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    L3PruneError
        The file is missing or is no JSON.

    Examples
    --------
    >>> read_json("/nowhere/config.json")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: cannot read /nowhere/config.json: No such file or directory
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise L3PruneError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise L3PruneError(f"{path} is not JSON: {error}") from error


def write_table(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as a CSV file, atomically.

    Examples
    --------
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> write_table(path, [{"epoch": 1, "loss": 0.5}])
    >>> path.read_text().splitlines()
    ['epoch,loss', '1,0.5']
    """
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays, and paths, as the JSON they stand for."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
