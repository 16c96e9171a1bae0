"""python -m l3prune.avc_data {subsets,shards,inspect}: data for audio-visual correspondence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l3prune.errors import L3PruneError, command


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one of the commands.

    Examples
    --------
    >>> main(["inspect", "/nowhere"])
    2
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _subsets(arguments: argparse.Namespace) -> None:
    from l3prune.datasets.subsets import make_subsets

    subsets = make_subsets(
        arguments.data_dir,
        metadata=arguments.metadata_path,
        ontology=arguments.ontology_path,
        filters=arguments.filter_path,
        valid_ratio=arguments.valid_ratio,
        test_ratio=arguments.test_ratio,
        seed=arguments.random_state,
    )
    written = subsets.write(arguments.output_dir, arguments.prefix)
    for notice in subsets.notices:
        print(notice, file=sys.stderr)
    for path, videos in written.items():
        print(f"{path}: {_count(videos, 'video')}")


def _shards(arguments: argparse.Namespace) -> None:
    from l3prune.datasets.making import SKIPPED, Settings, make_shards

    settings = Settings(
        samples=arguments.samples,
        batch_size=arguments.batch_size,
        sample_rate=arguments.sample_rate,
        augment=arguments.augment,
        include_metadata=arguments.include_metadata,
        distractors=arguments.num_distractors,
        seed=arguments.random_state,
    )
    made = make_shards(
        arguments.input,
        arguments.output_dir,
        settings,
        workers=arguments.num_workers,
        quiet=arguments.quiet,
    )
    record = Path(arguments.output_dir) / SKIPPED
    if made.skipped:
        print(f"{_count(made.skipped, 'video')} skipped, see {record}", file=sys.stderr)
    if made.damaged:
        print(f"{_count(made.damaged, 'video')} damaged in parts, see {record}", file=sys.stderr)
    print(
        f"{arguments.output_dir}: {_count(settings.samples, 'pair')} of "
        f"{_count(made.videos, 'video')} in {_count(made.shards, 'shard')}, "
        f"{made.new} made now"
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from l3prune.datasets.shards import ShardReport, find_shards, inspect_shard

    given = Path(arguments.path)
    paths = [given] if given.is_file() else find_shards(given)
    if not paths:
        raise L3PruneError(f"{given} holds no .h5 shards")
    width = max(len(path.name) for path in paths)
    print(f"{'shard':{width}}  {'pairs':>7}  {'rate':>6}  {'matches':>7}  metadata")

    def row(name: str, rate: object, metadata: str, pairs: int, matches: int) -> str:
        share = f"{100 * matches / pairs:.1f} %" if pairs else "-"
        return f"{name:{width}}  {pairs:7}  {rate:>6}  {share:>7}  {metadata}"

    reports: list[ShardReport] = []
    for path in paths:
        report = inspect_shard(path)
        reports.append(report)
        if report.damage:
            print(f"{path.name:{width}}  damaged")
        else:
            metadata = "yes" if report.metadata else "no"
            print(row(path.name, report.sample_rate, metadata, report.pairs, report.matches))
    whole = [report for report in reports if not report.damage]
    rates = sorted({report.sample_rate for report in whole})
    total = sum(report.pairs for report in whole), sum(report.matches for report in whole)
    if len(paths) > 1:
        print(row("all", rates[0] if len(rates) == 1 else "mixed" if rates else "-", "", *total))
    damaged = [report for report in reports if report.damage]
    for report in damaged:
        print(f"damaged: {' '.join(report.damage.split())}", file=sys.stderr)
    return 2 if damaged else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.avc_data",
        description="Data to learn audio-visual correspondence from: pairs of a picture and a "
        "second of sound, half of them of one moment of one video.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_subsets(commands)
    _add_shards(commands)
    _add_inspect(commands)
    return parser


def _add_subsets(commands: Any) -> None:
    parser = commands.add_parser(
        "subsets",
        help="share videos out to train, validate and test on",
        description="Write csv files of the videos to train, validate and test on, chosen by "
        "AudioSet's labels if need be.",
    )
    add = parser.add_argument
    add(
        "data_dir",
        metavar="DATA_DIR",
        help="folders audio and video with files of the same names, or a folder of videos",
    )
    add("output_dir", metavar="OUTPUT_DIR", help="folder for train.csv, valid.csv and test.csv")
    add(
        "prefix",
        metavar="PREFIX",
        nargs="?",
        default="",
        help="files are called PREFIX_train.csv, …",
    )
    add(
        "-mp",
        "--metadata-path",
        action="append",
        default=[],
        metavar="CSV",
        help="AudioSet's csv of segments, or a pattern of such names; repeatable; only videos "
        "listed there are used",
    )
    add("-o", "--ontology-path", metavar="JSON", help="AudioSet's ontology.json")
    add(
        "-fp",
        "--filter-path",
        metavar="CSV",
        help="columns filter_type, accept_reject, include_children, string",
    )
    for flags, which in ((("-vr", "--valid-ratio"), "validate"), (("-tr", "--test-ratio"), "test")):
        add(
            *flags,
            type=float,
            default=0.1,
            metavar="PART",
            help=f"of the videos, to {which} on (default: %(default)s)",
        )
    _add_random_state(parser)
    parser.set_defaults(run=_subsets)


def _add_shards(commands: Any) -> None:
    parser = commands.add_parser(
        "shards",
        help="make shards of pairs of videos",
        description="Make HDF5 shards of pairs of videos. The same settings give the same files "
        "with any number of workers; an interrupted run continues.",
    )
    add = parser.add_argument
    add("input", metavar="INPUT", help="folder of videos (mp4, mkv, webm, mov, avi), or subset csv")
    add(
        "output_dir",
        metavar="OUTPUT_DIR",
        help="folder of the shards: new, empty, or begun with the same settings",
    )
    add(
        "--samples",
        type=int,
        required=True,
        metavar="N",
        help="pairs of all shards together",
    )
    add(
        "-bs",
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="pairs of a shard (default: %(default)s)",
    )
    add(
        "--sample-rate",
        type=int,
        default=48000,
        metavar="HZ",
        help="of the sound (default: %(default)s)",
    )
    add("-a", "--augment", action="store_true", help="change loudness, colours, left and right")
    add(
        "-nd",
        "--num-distractors",
        "--distractors",
        type=int,
        default=1,
        metavar="N",
        help="other videos that each video is put together with (default: %(default)s)",
    )
    add(
        "-im",
        "--include-metadata",
        action="store_true",
        help="keep of each pair where it comes from",
    )
    _add_random_state(parser)
    add(
        "-n",
        "--num-workers",
        "--workers",
        type=int,
        default=_cores(),
        metavar="N",
        help="processes (default: the cores, here %(default)s)",
    )
    add("--quiet", action="store_true", help="no progress bar")
    _without_effect(parser)
    parser.set_defaults(run=_shards)


def _without_effect(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "accepted from L3-Net's job lines, without effect",
        "--num-streamers, --mux-rate, --precompute: any pair is decoded by itself",
    )
    group.add_argument("-ns", "--num-streamers", help=argparse.SUPPRESS)
    group.add_argument("-mr", "--mux-rate", help=argparse.SUPPRESS)
    group.add_argument("-pc", "--precompute", action="store_true", help=argparse.SUPPRESS)


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what shards hold, and which are damaged",
        description="Read whole shards and print what they hold.",
        epilog="Exit code: 0 all whole, 2 some are damaged (each is named), or no shards.",
    )
    parser.add_argument("path", metavar="FOLDER|FILE", help="folder of shards, or one shard")
    parser.set_defaults(run=_inspect)


def _add_random_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-r",
        "--random-state",
        type=int,
        default=20171021,
        metavar="N",
        help="seed (default: %(default)s)",
    )


def _cores() -> int:
    """Cores that this process may use; a job may have fewer than there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
