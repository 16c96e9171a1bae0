"""Published weights by name: fetched once, checked against their git hash, kept in a cache."""

from __future__ import annotations

import csv
import difflib
import functools
import importlib.resources
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from l3prune.download import download, has_hash
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import is_file, make_folder

#: Where an unknown name sends its reader.
SEE_LIST = "`python -m l3prune.models list` shows all"


@dataclass(frozen=True)
class PublishedWeights:
    """A weight file that others published.

    Attributes
    ----------
    name : str
        What people type: `collection:variant`, and `@version` unless it is the newest.
    file, url : str
        File name, in the cache too, and where its authors keep it.
    git_blob_sha1 : str
        40 hex digits; see `download.git_blob_sha1`.
    network : str
        Its network in `list_networks()`.
    front_end : str
        The kapre whose spectrogram it was made for, 'kapre-0.1' or 'kapre-0.3'; '' for images.
    licence : str
        The authors' terms for the file.

    Examples
    --------
    >>> find_weights("edgel3:sea-64").licence
    'MIT'
    """

    name: str
    file: str
    url: str
    git_blob_sha1: str
    network: str
    front_end: str
    licence: str


@functools.cache
def _table() -> tuple[PublishedWeights, ...]:
    text = importlib.resources.files("l3prune").joinpath("published.csv").read_text("utf-8")
    return tuple(PublishedWeights(**row) for row in csv.DictReader(text.splitlines()))


def list_weights() -> list[PublishedWeights]:
    """All published weights that have a name here.

    Examples
    --------
    >>> [weights.name for weights in list_weights() if weights.network == "sea64"]
    ['edgel3:sea-64']
    """
    return list(_table())


def find_weights(name: str) -> PublishedWeights:
    """Published weights by their name.

    Parameters
    ----------
    name : str
        One of `list_weights()`. The newest version may be given with its number too.

    Raises
    ------
    ParameterError
        Unknown name.

    Examples
    --------
    >>> find_weights("openl3:mel256-music").file
    'openl3_audio_mel256_music-v0_4_0.h5.gz'
    >>> find_weights("openl3:mel256-music@0.4.0").name
    'openl3:mel256-music'
    >>> find_weights("edgel3:sea-46")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no published weights 'edgel3:sea-46'; close: edgel3:sea-64, ...
    """
    known = {weights.name: weights for weights in _table()}
    if name in known:
        return known[name]
    newest, _, version = str(name).partition("@")
    if newest in known and f"-v{version.replace('.', '_')}." in known[newest].file:
        return known[newest]
    close = difflib.get_close_matches(str(name), known, n=4)
    raise ParameterError(
        f"no published weights {name!r}; "
        + (f"close: {', '.join(close)}; " if close else "")
        + SEE_LIST
    )


def fetch(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    mirrors: str | Sequence[str] | None = None,
    offline_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Path:
    """Path of published weights on this machine; downloads them if they are not there.

    Looked for in the offline folder, then in the cache, then at each mirror, then at the authors'
    address. A file is given out only if it has the published content, wherever it was found. An
    interrupted download goes on where it was; of several processes that want a file one
    downloads it and the others wait.

    Parameters
    ----------
    name : str
        See `find_weights`.
    cache_dir : str or path-like, or None
        None takes the environment's L3PRUNE_CACHE_DIR or else the user's cache folder.
    mirrors : str or sequence of str, or None
        http or https addresses to which the file's name is appended; a str has them separated by
        spaces. None takes the environment's L3PRUNE_MIRRORS.
    offline_dir : str or path-like, or None
        A folder that may have the file. None takes the folders that the environment's
        L3PRUNE_WEIGHTS_DIR names, separated as in PATH; of those, missing ones are passed over.
    quiet : bool
        No progress bar, no notices.

    Returns
    -------
    path : pathlib.Path
        The .h5.gz file, in the offline folder or in the cache.

    Raises
    ------
    ParameterError
        Unknown name, a mirror that is no http or https address, or no such offline folder.
    L3PruneError
        The file in an offline folder has other content, no address gave the file, or the cache
        cannot be written to.

    Examples
    --------
    >>> fetch("edgel3:sea-64", mirrors="file:///weights")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: mirror file:///weights is no http:// or https:// address; ...
    """
    weights = find_weights(name)
    addresses = [*_mirror_addresses(mirrors, weights.file), weights.url]
    for folder in _offline_folders(offline_dir):
        path = folder / weights.file
        if is_file(path):
            if not has_hash(path, weights.git_blob_sha1):
                raise L3PruneError(
                    f"{path} is damaged or is another file: its git hash is not that of "
                    f"{weights.name}, {weights.git_blob_sha1}; replace it or remove it"
                )
            return path
    path = cache_folder(cache_dir) / weights.file
    if has_hash(path, weights.git_blob_sha1):  # a cache that can only be read will do
        return path
    try:
        make_folder(path.parent)
    except L3PruneError as error:
        raise L3PruneError(f"{error}, by L3PRUNE_CACHE_DIR or cache_dir") from error
    reasons = download(path, weights.git_blob_sha1, addresses, quiet=quiet)
    if reasons:
        raise L3PruneError(
            f"cannot download {weights.file} ({weights.name}): {'; '.join(reasons)}; put the file "
            "into a folder and set L3PRUNE_WEIGHTS_DIR to that, or set L3PRUNE_MIRRORS to an "
            "address below which it is"
        )
    return path


def verify(
    names: Sequence[str] | None = None, *, cache_dir: str | os.PathLike[str] | None = None
) -> dict[str, str]:
    """Hash cached files again.

    Parameters
    ----------
    names : sequence of str or None
        See `find_weights`. None takes every file that is in the cache.
    cache_dir : str or path-like, or None
        As in `fetch`.

    Returns
    -------
    states : dict
        By name: 'ok', 'damaged' or 'missing'.

    Raises
    ------
    ParameterError
        Unknown name.
    L3PruneError
        A file cannot be read.

    Examples
    --------
    >>> verify(["edgel3:sea-64"], cache_dir="/nowhere")
    {'edgel3:sea-64': 'missing'}
    """
    folder = cache_folder(cache_dir)
    states = {}
    for weights in _table() if names is None else [find_weights(name) for name in names]:
        path = folder / weights.file
        if is_file(path):
            states[weights.name] = "ok" if has_hash(path, weights.git_blob_sha1) else "damaged"
        elif names is not None:
            states[weights.name] = "missing"
    return states


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder that downloads are kept in; see `fetch`.

    Examples
    --------
    >>> cache_folder("/data/weights").as_posix()
    '/data/weights'
    """
    if given is not None:
        return Path(given)
    chosen = os.environ.get("L3PRUNE_CACHE_DIR")
    return Path(chosen or platformdirs.user_cache_dir("l3prune", appauthor=False)).expanduser()


def _offline_folders(given: str | os.PathLike[str] | None) -> list[Path]:
    if given is None:
        folders = os.environ.get("L3PRUNE_WEIGHTS_DIR", "").split(os.pathsep)
        return [Path(folder).expanduser() for folder in folders if folder]
    if not Path(given).is_dir():
        raise ParameterError(f"offline folder {given} is no folder; give one that has the file")
    return [Path(given)]


def _mirror_addresses(given: str | Sequence[str] | None, file: str) -> list[str]:
    if given is None:
        given = os.environ.get("L3PRUNE_MIRRORS", "")
    mirrors = given.split() if isinstance(given, str) else given
    for mirror in mirrors:
        try:
            parts = urlsplit(mirror)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ParameterError(
                f"mirror {mirror} is no http:// or https:// address; a folder with the file goes "
                "into L3PRUNE_WEIGHTS_DIR"
            )
    return [f"{mirror.rstrip('/')}/{file}" for mirror in mirrors]
