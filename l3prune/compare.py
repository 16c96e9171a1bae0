"""python -m l3prune.compare: what networks cost, side by side; or, with --config, one table across
methods of pruning, see `methods`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import atomic_write, is_file, new_folder, read_json
from l3prune.methods import settings
from l3prune.quiet import load_tensorflow

#: In the output folder.
RECORD = "compare.json"
TABLES = "compare.md"
FIGURE = "compare.png"

#: What stands for a run of python -m l3prune.pruning: its best network, or without --retrain the
#: pruned one.
OF_A_RUN = ("model_best_valid_loss.h5", "model_pruned.h5")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.compare",
        usage="%(prog)s NETWORK [NETWORK ...] [options]\n"
        "       %(prog)s --config FILE [options]   (one table across methods; see --config FILE "
        "--help)",
        allow_abbrev=False,
        description="What networks cost, layer by layer, side by side: parameters, zeros, "
        "multiply-accumulates, memory, bytes, milliseconds. The first is what the others are "
        "compared with.",
        epilog=f"--output-dir receives {RECORD} (everything, unrounded), {TABLES} and {FIGURE}. "
        "Exit code: 0 done, 2 wrong input.",
    )
    add = parser.add_argument
    add(
        "networks",
        nargs="+",
        metavar="NETWORK",
        help="an .h5 or .h5.gz file, a published name, or a run's folder of python -m "
        f"l3prune.pruning, of which {OF_A_RUN[0]} is taken, or else {OF_A_RUN[1]}",
    )
    add("--output-dir", metavar="DIR", help="where files go; default: only print")
    add("--names", nargs="+", metavar="NAME", help="one a network; default: those of the files")
    add("--litert", action="store_true", help="bytes as LiteRT file too: some seconds a network")
    add("--quiet", action="store_true", help="no progress; only the tables")

    add = parser.add_argument_group("timing").add_argument
    add("--rounds", type=int, default=20, help="0 measures no times (%(default)s)")
    add("--batch-size", type=int, default=1, help="inputs computed at once (%(default)s)")
    add("--threads", type=int, help="of TensorFlow; default: its own choice")
    return parser


def _check(args: argparse.Namespace) -> dict[str, str]:
    """Everything that needs no TensorFlow; gives name -> file or published name."""
    if args.rounds < 0:
        raise ParameterError(f"--rounds {args.rounds} is negative; 0 measures no times")
    for option in ("batch_size", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ParameterError(f"--{option.replace('_', '-')} {value} is not a positive number")
    files = [_file(given) for given in args.networks]
    if args.names is None:
        names = short_names(args.networks)
    else:
        names = args.names
        if len(names) != len(files):
            raise ParameterError(f"{len(names)} --names for {len(files)} networks; give one each")
        for name in names:
            if not name.strip() or not name.isprintable():
                raise ParameterError(f"--names {name!r} is not a name that can be shown")
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(
                f"two networks are called {name}; leave one out, or give each its own by --names"
            )
    return dict(zip(names, files, strict=True))


def _file(given: str) -> str:
    """What to load for an argument: of a run's folder a network in it."""
    if not Path(given).is_dir():
        return given
    for name in OF_A_RUN:
        if is_file(Path(given) / name):
            return str(Path(given) / name)
    raise ParameterError(
        f"{given} has no {' and no '.join(OF_A_RUN)}; give a run's folder, or a weight file"
    )


def short_names(paths: Sequence[str]) -> list[str]:
    """Names for files and folders: the last part of each path, and as many before as tell it apart.

    Examples
    --------
    >>> short_names(["a/net.h5", "b/net.h5.gz", "runs/first/", "edgel3:sea-64"])
    ['a/net', 'b/net', 'first', 'edgel3:sea-64']
    """
    # Whole paths, since "." and ".." are no names.
    parts = [Path(re.sub(r"\.h5(\.gz)?$", "", os.path.abspath(path))).parts for path in paths]
    lengths = [1] * len(parts)
    while True:
        names = [str(Path(*each[-length:])) for each, length in zip(parts, lengths, strict=True)]
        longer = [
            min(length + (names.count(name) > 1), len(each))
            for name, each, length in zip(names, parts, lengths, strict=True)
        ]
        if longer == lengths:
            return names
        lengths = longer


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m l3prune.compare --help`."""
    words = sys.argv[1:] if argv is None else argv
    if settings.wanted(words):
        settings.parse(words)  # what is wrong shows before TensorFlow is loaded
        load_tensorflow()
        from l3prune.methods.study import run

        return run(words)
    args = _parser().parse_args(words)
    files = _check(args)
    load_tensorflow()
    from l3prune import models
    from l3prune.comparison import compare
    from l3prune.weights import fingerprint

    if args.threads is not None:
        _set_threads(args.threads)
    networks = {name: models.load(file) for name, file in files.items()}
    origin = {
        # Where they lie on this machine is nobody's business.
        "files": {name: Path(file).name for name, file in files.items()},
        "architectures": {name: network.name for name, network in networks.items()},
        "fingerprints": {name: fingerprint(network) for name, network in networks.items()},
    }
    with contextlib.ExitStack() as folders:
        # What is wrong with the folder shows before the timing.
        if args.output_dir is not None:
            folder = folders.enter_context(new_folder(args.output_dir))
            _check_record(folder / RECORD, origin["fingerprints"])
        found = compare(
            networks,
            litert=args.litert,
            rounds=args.rounds,
            batch_size=args.batch_size,
            quiet=args.quiet,
        )
        if args.output_dir is not None:
            found.plot(folder / FIGURE)
            with atomic_write(folder / TABLES) as temporary:
                temporary.write_text(found.markdown(), encoding="utf-8")
            found.to_json(folder / RECORD, origin)
    width = max(map(len, files))
    for name, file in files.items():
        print(f"{name:{width}}  {file}")
    print(f"\n{found}")
    if args.output_dir is not None:
        print(f"\n{folder}")
    return 0


def _set_threads(threads: int) -> None:
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise L3PruneError(f"--threads {threads}: TensorFlow runs already ({error})") from error


def _check_record(path: Path, fingerprints: Mapping[str, str]) -> None:
    """Refuse to replace a comparison of other networks."""
    if not path.exists():
        return
    record = read_json(path)
    before = record.get("fingerprints") if isinstance(record, dict) else None
    if not isinstance(before, dict):
        raise L3PruneError(f"{path} does not tell what it is of; delete it")
    if before != fingerprints:
        raise ParameterError(
            f"{path} is of other networks ({', '.join(before)}); delete it, or give another "
            "--output-dir"
        )


if __name__ == "__main__":
    sys.exit(main())
