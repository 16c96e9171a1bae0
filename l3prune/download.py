"""Files fetched from the first of several addresses, resumed, checked against their git hash.

Not by pooch, because it can neither resume nor check git blob hashes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import filelock
import requests
import urllib3
from tqdm import tqdm

from l3prune.errors import L3PruneError
from l3prune.files import is_file

#: Seconds to wait for a connection, and for the next bytes on it.
_TIMEOUTS = (10.0, 30.0)

#: Seconds to wait before each further try of an address that may answer later.
_PAUSES = (1.0, 2.0, 4.0)

#: The networks have some 40 MB at most; a server that sends more than this has another file.
_MAX_BYTES = 1 << 30

_BLOCK = 1 << 16


def git_blob_sha1(path: str | os.PathLike[str]) -> str:
    r"""Hash of a file's content as git computes it: SHA-1 of b"blob <bytes>\0" and the content.

    Weights are published in git repositories, which give this hash and no other. It shows damage
    and mix-ups.

    Returns
    -------
    digest : str
        40 hex digits.

    Raises
    ------
    L3PruneError
        The file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty"
    >>> path.touch()
    >>> git_blob_sha1(path)
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise L3PruneError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def has_hash(path: Path, sha1: str) -> bool:
    """Whether `path` is a file and has this git hash.

    Examples
    --------
    >>> has_hash(Path("/nowhere"), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
    False
    """
    return is_file(path) and git_blob_sha1(path) == sha1


def download(path: Path, sha1: str, addresses: Sequence[str], *, quiet: bool = False) -> list[str]:
    """Put the file with this git hash at `path`, from the first address that has it.

    Goes on with the `.part` file that an interrupted download left. Of several processes that want
    a file one downloads it and the others wait. `path` appears by a rename, after its hash was
    found right; a file with another hash that is there is deleted.

    Parameters
    ----------
    path : pathlib.Path
        Its folder exists.
    sha1 : str
        See `git_blob_sha1`.
    addresses : sequence of str
        http or https, asked in this order.
    quiet : bool
        No progress bar, no notice about a damaged file.

    Returns
    -------
    reasons : list of str
        Why each address did not give it; empty when `path` is the file.

    Raises
    ------
    L3PruneError
        The folder cannot be written to.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty"
    >>> (path.parent / "empty.part").touch()
    >>> download(path, git_blob_sha1(path.parent / "empty.part"), [])
    []
    >>> path.exists()
    True
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with filelock.FileLock(path.with_name(f".{path.name}.lock")), _Session() as session:
            if has_hash(path, sha1):  # another process was first
                return []
            if path.is_file():
                if not quiet:
                    tqdm.write(f"{path} is damaged; downloading it again", file=sys.stderr)
                path.unlink()
            reasons: list[str] = []
            # A whole .part is of a process that was stopped just before it renamed it.
            while not has_hash(part, sha1):
                if len(reasons) == len(addresses):
                    return reasons
                address = addresses[len(reasons)]
                try:
                    _from_address(session, address, part, sha1, quiet)
                except _Failed as failed:
                    reasons.append(f"{_shown(address)}: {failed}")
            os.replace(part, path)
            return []
    except OSError as error:
        raise L3PruneError(f"cannot write {path}: {error.strerror or error}") from error


class _Failed(Exception):
    """An address did not give the file; `again`: it may, when it is asked again."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class _Session(requests.Session):
    """Follows redirects, but not from https to an address that others on the way can change."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target is not None and urlsplit(resp.url).scheme == "https":
            whole = urljoin(resp.url, target)
            if urlsplit(whole).scheme != "https":
                raise _Failed(f"redirects from https to {_shown(whole)}, which is refused")
        return target


def _from_address(
    session: requests.Session, address: str, part: Path, sha1: str, quiet: bool
) -> None:
    pauses = list(_PAUSES)
    wrong = 0
    while True:
        try:
            _transfer(session, address, part, quiet)
        except _Failed as failed:
            if not failed.again or not pauses:
                raise
            time.sleep(pauses.pop(0))
            continue
        if has_hash(part, sha1):
            return
        # The beginning may be of another server or day, so once more from the first byte.
        part.unlink()
        wrong += 1
        if wrong == 2:
            raise _Failed("its content is not the published one (git hash differs)")


def _transfer(session: requests.Session, address: str, part: Path, quiet: bool) -> None:
    """Append to `part` what it lacks.

    There is no If-Range: the hash of the whole tells whether both ends belong together.
    """
    start = part.stat().st_size if part.exists() else 0
    # As it is stored: some servers declare .gz files to be packed only for the way.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with session.get(address, headers=headers, stream=True, timeout=_TIMEOUTS) as answer:
            if start and not _continues(answer, start):
                if answer.status_code in (206, 416):
                    part.unlink()
                    raise _Failed("cannot go on where the download was", again=True)
                start = 0
            if answer.status_code != (206 if start else 200):
                status = answer.status_code
                reason = f"HTTP {status} {answer.reason or ''}".rstrip()
                raise _Failed(reason, again=status in (408, 429) or status >= 500)
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() else None
            if total is not None and total > _MAX_BYTES:
                raise _Failed(f"has {total} bytes, so it is another file")
            with (
                part.open("ab" if start else "wb") as file,
                tqdm(
                    desc=part.stem,
                    total=total,
                    initial=start,
                    unit="B",
                    unit_scale=True,
                    leave=False,
                    disable=quiet or None,
                ) as bar,
            ):
                for block in answer.raw.stream(_BLOCK, decode_content=False):
                    file.write(block)
                    bar.update(len(block))
                    if file.tell() > _MAX_BYTES:
                        file.truncate(0)
                        raise _Failed(f"sends more than {_MAX_BYTES} bytes, so it is another file")
    except requests.exceptions.SSLError as error:
        raise _Failed(_reason(error)) from error
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _Failed(_reason(error), again=True) from error
    except (requests.RequestException, ValueError) as error:  # ValueError: a redirect to no address
        raise _Failed(_reason(error)) from error


def _continues(answer: requests.Response, start: int) -> bool:
    where = answer.headers.get("Content-Range", "").lower()
    return answer.status_code == 206 and where.startswith(f"bytes {start}-")


def _shown(address: str) -> str:
    """An address as it may stand in a log: without a password."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _reason(error: BaseException) -> str:
    """What happened, out of the layers that requests and urllib3 wrap around it."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {_TIMEOUTS[0]:g} s"
    if isinstance(error, requests.Timeout | urllib3.exceptions.ReadTimeoutError):
        return f"nothing came for {_TIMEOUTS[1]:g} s"
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
