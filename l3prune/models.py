"""Networks by the names and options that people know: published weights as networks.

python -m l3prune.models list | fetch NAME … | verify
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import is_file
from l3prune.published import (
    SEE_LIST,
    PublishedWeights,
    cache_folder,
    fetch,
    find_weights,
    list_weights,
    verify,
)

INPUT_REPRS = ("linear", "mel128", "mel256")
CONTENT_TYPES = ("music", "env")
MODEL_TYPES = ("sea", "sparse")
EMB_DIMS = (512, 256, 128, 64)
RETRAIN_TYPES = ("ft", "kd")
SPARSITIES = (53.5, 63.5, 72.3, 73.5, 81.0, 87.0, 90.5, 95.45)
AUDIO_SIZES = (6144, 512)
IMAGE_SIZES = (8192, 512)
FRONT_ENDS = ("kapre", "librosa")

_OF_EDGEL3 = ("model_type", "emb_dim", "retrain_type", "sparsity")
_OF_OPENL3 = ("input_repr", "content_type", "embedding_size", "frontend")


def locate(model: str | os.PathLike[str]) -> tuple[Path, str | None, dict[str, Any]]:
    """A weight file on this machine, and how to load it.

    Parameters
    ----------
    model : str or path-like
        A weight file, or a name of published weights (`list_weights`). OpenL3's may have the size
        of the embedding behind it, as in "openl3:mel256-music-512"; without it, the network's own
        default is taken.

    Returns
    -------
    path : pathlib.Path
        Of published weights see `fetch`.
    network : str or None
        None: the file tells.
    arguments : dict
        Both for `weights.load_network`.

    Raises
    ------
    ParameterError
        No such file and no such name.
    L3PruneError
        As `fetch`.

    Examples
    --------
    >>> locate("openl3:mel512-music")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no published weights 'openl3:mel512-music'; close: ...
    """
    path = Path(model)
    if is_file(path):
        return path, None, {}
    name = str(model)
    if ":" not in name:
        raise ParameterError(
            f"no such weight file: {path}; published weights have names such as "
            f"edgel3:sparse-95.45-ft, {SEE_LIST}"
        )
    arguments: dict[str, Any] = {}
    sized = re.fullmatch(r"(openl3:.+)-(512|6144|8192)(@.+)?", name)
    if sized:
        name = sized[1] + (sized[3] or "")
        arguments["embedding_size"] = int(sized[2])
    weights = find_weights(name)
    if weights.front_end:
        arguments["front_end"] = weights.front_end
    return fetch(name), weights.network, arguments


def load(model: str | os.PathLike[str], name: str | None = None, **arguments: Any):
    """Load a network from a weight file or by the name of published weights.

    Parameters
    ----------
    model : str or path-like
        See `locate`.
    name, **arguments
        See `weights.load_network`; they take precedence over what the name of the weights says.

    Returns
    -------
    network : keras.Model

    Raises
    ------
    ParameterError, L3PruneError
        As `locate` and `weights.load_network`.

    Examples
    --------
    >>> load("net.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: net.h5; published weights have names ...
    """
    from l3prune.weights import load_network

    path, network, published = locate(model)
    return load_network(path, name or network, **{**published, **arguments})


def load_audio(model: str | os.PathLike[str], name: str | None = None, **arguments: Any):
    """Load an audio network as `load` does: of an audio-visual file, its audio half.

    Examples
    --------
    >>> load_audio("net.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: net.h5; published weights have names ...
    """
    from l3prune.weights import load_network

    path, network, published = locate(model)
    return load_network(path, name or network or "audio", **{**published, **arguments})


def select(**options: Any) -> tuple[str, dict[str, Any]]:
    """The audio network that the packages' own options describe.

    Parameters
    ----------
    **options
        Either edgel3's, checked in this order: `model_type` "sparse" or "sea" (default sparse),
        `emb_dim` of sea (128), `retrain_type` "ft" or "kd" (ft), `sparsity` in percent (95.45);
        or openl3's: `frontend` "kapre" or "librosa" (kapre), `input_repr` (None: mel256, but
        librosa needs one), `content_type` "music" or "env" (music), `embedding_size` 6144 or 512
        (6144).

    Returns
    -------
    name : str
    arguments : dict
        Both for `engines.load_model`.

    Raises
    ------
    ParameterError
        A value outside its set, an option of neither package, or options of both.

    Examples
    --------
    >>> select(sparsity=87, retrain_type="kd")
    ('edgel3:sparse-87.0-kd', {})
    >>> select(input_repr="mel128", embedding_size=512)
    ('openl3:mel128-music', {'embedding_size': 512})
    """
    edgel3, openl3 = (
        [option for option in options if option in known] for known in (_OF_EDGEL3, _OF_OPENL3)
    )
    unknown = [option for option in options if option not in (*edgel3, *openl3)]
    if unknown:
        raise ParameterError(
            f"no option {unknown[0]}; weights are chosen by {', '.join(_OF_EDGEL3)} (EdgeL3) or "
            f"{', '.join(_OF_OPENL3)} (OpenL3)"
        )
    if edgel3 and openl3:
        raise ParameterError(
            f"{', '.join(edgel3)} choose EdgeL3's weights and {', '.join(openl3)} OpenL3's; "
            "give one or the other"
        )
    return _select_openl3(**options) if openl3 else (_select_edgel3(**options), {})


def select_image(
    input_repr: str = "mel256", content_type: str = "music", embedding_size: int = 8192
) -> tuple[str, dict[str, Any]]:
    """The image network that openl3's options describe; see `select`.

    Parameters
    ----------
    input_repr : {"linear", "mel128", "mel256"}
        Of the audio network that it was trained with.
    content_type : {"music", "env"}
    embedding_size : {8192, 512}

    Returns
    -------
    name : str
    arguments : dict

    Raises
    ------
    ParameterError
        A value outside its set.

    Examples
    --------
    >>> select_image(embedding_size=512)
    ('openl3:image-mel256-music', {'embedding_size': 512})
    """
    check("input_repr", input_repr, INPUT_REPRS)
    check("content_type", content_type, CONTENT_TYPES)
    check("embedding_size", embedding_size, IMAGE_SIZES)
    return f"openl3:image-{input_repr}-{content_type}", {"embedding_size": int(embedding_size)}


def _select_edgel3(
    model_type: str = "sparse",
    emb_dim: int = 128,
    retrain_type: str = "ft",
    sparsity: float = 95.45,
) -> str:
    check("model_type", model_type, MODEL_TYPES)
    check("emb_dim", emb_dim, EMB_DIMS)
    check("retrain_type", retrain_type, RETRAIN_TYPES)
    check("sparsity", sparsity, SPARSITIES)
    if model_type == "sea":
        return f"edgel3:sea-{int(emb_dim)}"
    return f"edgel3:sparse-{float(sparsity)}-{retrain_type}"


def _select_openl3(
    input_repr: str | None = None,
    content_type: str = "music",
    embedding_size: int = 6144,
    frontend: str = "kapre",
) -> tuple[str, dict[str, Any]]:
    check("frontend", frontend, FRONT_ENDS)
    if input_repr is None and frontend == "librosa":
        raise ParameterError("input_repr=None; the librosa front end needs one: linear, mel128, …")
    input_repr = "mel256" if input_repr is None else input_repr
    check("input_repr", input_repr, INPUT_REPRS)
    check("content_type", content_type, CONTENT_TYPES)
    check("embedding_size", embedding_size, AUDIO_SIZES)
    arguments: dict[str, Any] = {"embedding_size": int(embedding_size)}
    if frontend == "librosa":
        # As in openl3, the network then takes the spectrogram.
        arguments |= {"front_end": "librosa", "input": "log_mel"}
    return f"openl3:{input_repr}-{content_type}", arguments


def check(option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse an option's value outside its set.

    Examples
    --------
    >>> check("verbose", 2, (0, 1))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: verbose=2; allowed: 0, 1
    """
    # isinstance: an array equals a number element by element.
    if not isinstance(value, str | int | float | np.number) or value not in allowed:
        raise ParameterError(f"{option}={value!r}; allowed: {', '.join(map(repr, allowed))}")


def load_embedding_model(
    model_type: str = "sparse",
    emb_dim: int = 128,
    retrain_type: str = "ft",
    sparsity: float = 95.45,
):
    """EdgeL3's network, as `edgel3.models` loads it; the options are those of `select`.

    Returns
    -------
    network : keras.Model, (batch, 1, sample rate) -> (batch, size)

    Examples
    --------
    >>> load_embedding_model(retrain_type="qat")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: retrain_type='qat'; allowed: 'ft', 'kd'
    """
    return load(_select_edgel3(model_type, emb_dim, retrain_type, sparsity))


def load_embedding_model_path(
    model_type: str = "sparse",
    emb_dim: int = 128,
    retrain_type: str = "ft",
    sparsity: float = 95.45,
) -> str:
    """Where EdgeL3's weights are on this machine, after a download if need be.

    Examples
    --------
    >>> load_embedding_model_path(sparsity=40)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: sparsity=40; allowed: 53.5, 63.5, 72.3, 73.5, 81.0, 87.0, ...
    """
    return str(fetch(_select_edgel3(model_type, emb_dim, retrain_type, sparsity)))


def load_audio_embedding_model(
    input_repr: str, content_type: str, embedding_size: int, frontend: str = "kapre"
):
    """OpenL3's audio network, as `openl3.models` loads it; the options are those of `select`.

    Returns
    -------
    network : keras.Model
        (batch, 1, 48000) -> (batch, embedding_size); with the librosa front end it takes
        spectrograms, (batch, bands, frames, 1).

    Examples
    --------
    >>> load_audio_embedding_model("mel256", "speech", 512)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: content_type='speech'; allowed: 'music', 'env'
    """
    name, arguments = _select_openl3(input_repr, content_type, embedding_size, frontend)
    return load(name, **arguments)


def load_audio_embedding_model_from_path(
    model_path: str | os.PathLike[str],
    input_repr: str,
    embedding_size: int,
    frontend: str = "kapre",
):
    """OpenL3's audio network from a file, whatever its name; see `load_audio_embedding_model`.

    Examples
    --------
    >>> load_audio_embedding_model_from_path("/nowhere/net.h5", "mel256", 512)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: /nowhere/net.h5; ...
    """
    _, arguments = _select_openl3(input_repr, "music", embedding_size, frontend)
    return load(model_path, input_repr, **arguments)


def load_image_embedding_model(input_repr: str, content_type: str, embedding_size: int):
    """OpenL3's image network, as `openl3.models` loads it; the options are `select_image`'s.

    Returns
    -------
    network : keras.Model, (batch, 224, 224, 3) -> (batch, embedding_size)

    Examples
    --------
    >>> load_image_embedding_model("mel256", "music", 6144)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: embedding_size=6144; allowed: 8192, 512
    """
    name, arguments = select_image(input_repr, content_type, embedding_size)
    return load(name, **arguments)


def load_image_embedding_model_from_path(model_path: str | os.PathLike[str], embedding_size: int):
    """OpenL3's image network from a file; see `load_image_embedding_model`.

    Examples
    --------
    >>> load_image_embedding_model_from_path("/nowhere/net.h5", 512)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: /nowhere/net.h5; ...
    """
    check("embedding_size", embedding_size, IMAGE_SIZES)
    return load(model_path, "vision", embedding_size=embedding_size)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.models",
        description="Weights that others published. NAME may be a pattern with *, ? or [].",
        epilog="Exit code: 0 all well, 1 some files were not fetched, are damaged or missing (each "
        "is named), 2 wrong arguments or no file.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    lists = commands.add_parser("list", help="print names")
    lists.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    lists.add_argument("--json", action="store_true", help="everything that is known")
    fetches = commands.add_parser("fetch", help="print paths, after a download if need be")
    fetches.add_argument("names", nargs="+", metavar="NAME")
    fetches.add_argument(
        "--mirror",
        action="append",
        metavar="URL",
        help="address above the files, tried before the authors'; repeatable ($L3PRUNE_MIRRORS)",
    )
    fetches.add_argument("--from", metavar="FOLDER", help="looked in first ($L3PRUNE_WEIGHTS_DIR)")
    fetches.add_argument("--quiet", "-q", action="store_true", help="no progress, no notices")
    verifies = commands.add_parser("verify", help="hash cached files again")
    verifies.add_argument("names", nargs="*", metavar="NAME", help="default: all that are cached")
    verifies.add_argument("--quiet", "-q", action="store_true", help="only what is not ok")
    for each in (lists, fetches, verifies):
        each.add_argument("--cache-dir", help="where downloads are kept ($L3PRUNE_CACHE_DIR)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m l3prune.models --help`."""
    args = _parser().parse_args(argv)
    return {"list": _list, "fetch": _fetch, "verify": _verify}[args.command](args)


def _matching(words: Sequence[str]) -> list[PublishedWeights]:
    """What names and patterns select, each once."""
    chosen: dict[PublishedWeights, None] = {}
    for word in words:
        if any(character in word for character in "*?["):
            found = [each for each in list_weights() if fnmatch.fnmatchcase(each.name, word)]
            if not found:
                raise ParameterError(f"no published weights match {word!r}; {SEE_LIST}")
        else:
            found = [find_weights(word)]
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _list(args: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    for weights in _matching(args.names or ["*"]):
        path = cache_folder(args.cache_dir) / weights.file
        cached = path.is_file()
        size = path.stat().st_size if cached else None
        rows.append(asdict(weights) | {"path": str(path) if cached else None, "bytes": size})
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(row["name"]) for row in rows)
    print(f"{'name':{width}}  network      size  cached")
    for row in rows:
        state = "       -  no" if row["path"] is None else f"{row['bytes'] / 1e6:5.1f} MB  yes"
        print(f"{row['name']:{width}}  {row['network']:<7}  {state}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    chosen = _matching(args.names)
    options = {"cache_dir": args.cache_dir, "mirrors": args.mirror, "quiet": args.quiet}
    failed = 0
    for weights in chosen:
        try:
            path = fetch(weights.name, offline_dir=getattr(args, "from"), **options)
        except L3PruneError as error:
            # A wrong argument is wrong for every file.
            if len(chosen) == 1 or isinstance(error, ParameterError):
                raise
            print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
            failed += 1
        else:
            print(path, flush=True)
    if failed == len(chosen):
        raise L3PruneError("no file was fetched")
    return 1 if failed else 0


def _verify(args: argparse.Namespace) -> int:
    names = [weights.name for weights in _matching(args.names)] if args.names else None
    states = verify(names, cache_dir=args.cache_dir)
    if not states:
        raise L3PruneError(
            f"no published weights in {cache_folder(args.cache_dir)}; get them with "
            "python -m l3prune.models fetch NAME"
        )
    bad = [name for name in states if states[name] != "ok"]
    for name in bad if args.quiet else states:
        print(f"{states[name]:7}  {name}")
    if bad:
        print(f"to repair: python -m l3prune.models fetch {' '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
