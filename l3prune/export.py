"""python -m l3prune.export: a network in the files of other engines, each checked by its engine."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l3prune.audio import find_audio
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.export_formats import FORMATS, INPUTS, Format
from l3prune.files import atomic_write, new_folder
from l3prune.model_card import CARD, check_folder, model_card, read_records
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from l3prune.exports import Source

#: Recordings and windows of --calibration that are used, at most, evenly spread.
MAX_FILES, MAX_WINDOWS = 64, 128

#: Without --calibration: made-up sounds of each class.
TAKES = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.export",
        usage="%(prog)s WEIGHTS OUTPUT_DIR --format FORMAT [FORMAT ...] [options]",
        allow_abbrev=False,
        description="A network in the files of other engines. Each is run by its engine and "
        "compared with the network before it gets its name.",
        epilog=f"OUTPUT_DIR receives each file, a .json beside it, and {CARD}, the model card. "
        "Exit code: 0 all exported, 2 wrong input, or something was not exported.",
    )
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="an .h5 or .h5.gz file, or a published name")
    add("output_dir", metavar="OUTPUT_DIR")
    add("--format", nargs="+", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    add(
        "--input",
        choices=INPUTS,
        help="what files take: sound, with the front end inside, or its log-mel spectrogram "
        "(default: waveform, where the format can)",
    )
    add(
        "--calibration",
        metavar="DIR",
        help="folder of recordings: every other second gives the ranges of int8 activations, the "
        "others are what exports are compared on (default: compared on made-up sounds)",
    )
    add(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest error, as a fraction of an embedding's length (default: the format's, see "
        "docs/export.md)",
    )
    add("--name", help="what files are called (default: as WEIGHTS)")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--quiet", action="store_true", help="nothing but errors")
    return parser


def _check(args: argparse.Namespace) -> list[tuple[Format, str]]:
    """Everything that needs no TensorFlow; gives formats with their inputs."""
    for name in args.format:
        if name not in FORMATS:
            raise ParameterError(f"--format {name} is unknown; known: {', '.join(FORMATS)}")
    if args.tolerance is not None and not 0 < args.tolerance < math.inf:
        raise ParameterError(f"--tolerance {args.tolerance} is not a positive number")
    if args.name is None:
        args.name = _name(args.weights)
    if not _is_name(args.name):
        raise ParameterError(f"--name {args.name!r} is not a name for files; give another")
    chosen = []
    for form in (FORMATS[name] for name in dict.fromkeys(args.format)):
        given = args.input or form.inputs[0]
        form.check_input(given)
        form.check_packages()
        path = Path(args.output_dir) / form.file(args.name, given)
        form.check_place(path, overwrite=args.overwrite)
        chosen.append((form, given))
    return chosen


def _name(weights: str) -> str:
    """What files of a network are called: its file's name, or its published one."""
    name = Path(weights).name.replace(":", "-")
    return name.removesuffix(".gz").removesuffix(".h5")


def _is_name(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8, which records and cards are
        return False
    return Path(name).name == name and not name.startswith(".") and bool(name.strip())


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m l3prune.export --help`."""
    args = _parser().parse_args(argv)
    chosen = _check(args)
    recordings = [] if args.calibration is None else _recordings(args.calibration)
    load_tensorflow()
    from l3prune import models
    from l3prune.exports import describe_source, export
    from l3prune.networks import network_config, takes

    network = models.load_audio(args.weights, input="waveform")
    name = network_config(network).name
    if takes(name, "classes"):
        raise ParameterError(
            f"network {name} in {args.weights} scores classes; exports are of embedding networks "
            "of the L3 family only. In Python litert.convert(network) makes a LiteRT file of it, "
            "which takes spectrograms; so does python -m l3prune.pruning --labels … --float16"
        )
    facts = describe_source(network, args.weights)
    source = _source(network, args, recordings, facts)
    for form, _ in chosen:
        if form.calibrated and source.calibration is None and source.ranges is None:
            raise ParameterError(
                f"{form.name} needs ranges of activations from real audio: give a folder of "
                "recordings by --calibration, or a network of python -m l3prune.quantize"
            )
    failed = 0
    with new_folder(args.output_dir) as folder:
        check_folder(folder, facts)
        for form, given in chosen:
            try:
                record = export(
                    source,
                    form,
                    given,
                    folder,
                    tolerance=args.tolerance,
                    overwrite=args.overwrite,
                )
            except L3PruneError as error:
                if len(chosen) == 1:
                    raise
                failed += 1
                print(f"not exported: {form.name}: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            if not args.quiet:
                print(
                    f"{folder / record['file']}  {record['bytes']} bytes, error "
                    f"{record['error']:.2g} (allowed {record['tolerance']:g})",
                    flush=True,
                )
            with atomic_write(folder / CARD) as temporary:
                temporary.write_bytes(model_card(read_records(folder)).encode(errors="replace"))
        if failed == len(chosen):
            raise L3PruneError("nothing was exported")
    return 2 if failed else 0


def _recordings(folder: str) -> list[Path]:
    """Some of a folder's recordings, evenly spread."""
    if Path(folder).is_file():
        raise ParameterError(f"--calibration {folder} is a file; give a folder of recordings")
    files = find_audio(folder)
    if not files:
        raise L3PruneError(
            f"--calibration {folder} holds no audio files (wav, flac, ogg, mp3); give a folder of "
            "recordings"
        )
    return [files[number] for number in _spread(len(files), MAX_FILES)]


def _source(
    network: Any, args: argparse.Namespace, recordings: list[Path], facts: dict[str, Any]
) -> Source:
    from l3prune.exports import Source
    from l3prune.litert import front_end_of
    from l3prune.models import locate
    from l3prune.weights import read_attachment

    rate = front_end_of(network).sample_rate
    ranges = read_attachment(locate(args.weights)[0]).get("ranges")  # of python -m l3prune.quantize
    if not recordings:
        return Source(network, args.name, _made_up(rate), "made-up sounds", None, ranges, facts)
    windows = _windows(recordings, rate, quiet=args.quiet)
    if len(windows) < 2:
        raise L3PruneError(
            f"--calibration {args.calibration} holds {len(windows)} second of sound; give two at "
            "least: one for ranges, one to compare on"
        )
    return Source(network, args.name, windows[1::2], "recordings", windows[::2], ranges, facts)


def _windows(recordings: list[Path], sample_rate: int, *, quiet: bool) -> np.ndarray:
    """Some seconds of recordings, evenly spread and apart, (n, 1, sample_rate)."""
    import tempfile

    from l3prune.windows import AudioFiles

    with tempfile.TemporaryDirectory() as cache:
        source = AudioFiles(recordings, sample_rate, cache, hop_size=1.0, quiet=quiet)
        return source.read(_spread(len(source), MAX_WINDOWS))


def _made_up(sample_rate: int) -> np.ndarray:
    """The same sounds at any time, (n, 1, sample_rate)."""
    from l3prune.datasets.sounds import CLASSES, keyed_generator, synthesize

    windows = [
        synthesize(label, keyed_generator(take, number), 1.0, sample_rate)
        for take in range(TAKES)
        for number, label in enumerate(CLASSES)
    ]
    return np.stack(windows)[:, np.newaxis].astype(np.float32)


def _spread(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers below `count`, evenly spread."""
    return np.arange(min(count, most)) * count // min(count, most)


if __name__ == "__main__":
    sys.exit(main())
