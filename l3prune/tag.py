"""python -m l3prune.tag: which sounds are in recordings."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l3prune import views
from l3prune.audio import AUDIO_EXTENSIONS
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import find_inputs, new_folder, write_json, write_table

if TYPE_CHECKING:
    from l3prune.labels import Tracker
    from l3prune.tagging import Tagger


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.tag",
        usage="%(prog)s INPUT [INPUT ...] --model FILE [options]",
        allow_abbrev=False,
        description="Which sounds are in recordings: the most likely classes of each file, or, "
        "with --framewise, when they are heard.",
        epilog="Exit code: 0 all tagged, 1 some files were skipped (each is named), 2 wrong "
        "arguments or no file tagged.",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, and folders of files")
    views.add_options(parser, top_k=10)
    add = parser.add_argument
    add("--json", metavar="DIR", help="write a .json for each file")
    add("--csv", metavar="DIR", help="write a .csv for each file")
    add(
        "--framewise",
        action="store_true",
        help="scores over time: of cnn14_decision_level_max every 10 ms, of other networks in "
        "windows; shown are the sounds with the highest peaks",
    )
    add("--window", type=float, metavar="S", help="with --framewise: seconds of a window (2)")
    add("--hop-size", type=float, metavar="S", help="with --framewise: seconds between them (0.5)")
    add("--quiet", "-q", action="store_true", help="no tables, no progress, no warnings")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m l3prune.tag --help`."""
    args = _parser().parse_args(argv)
    if args.quiet and args.json is None and args.csv is None:
        raise ParameterError("--quiet tells nothing; give --json or --csv, or leave it out")
    for flag in ("window", "hop_size"):
        if getattr(args, flag) is not None and not args.framewise:
            raise ParameterError(f"--{flag.replace('_', '-')} is for --framewise")
    found = find_inputs(args.inputs, AUDIO_EXTENSIONS, "audio")
    files = list({path.resolve(): path for path in found}.values())
    _check_outputs(files, args)
    tagger, tracker = views.load(args)
    if args.framewise:
        from l3prune.tagging import window_samples

        window_samples(tagger, args.window, args.hop_size)  # wrong for one file, wrong for all
    with contextlib.ExitStack() as folders:
        for folder in (args.json, args.csv):
            if folder is not None:
                folders.enter_context(new_folder(folder))
        return _tag_all(files, args, tagger, tracker)


def _check_outputs(files: Sequence[Path], args: argparse.Namespace) -> None:
    """Refuse files whose results would have one name."""
    if args.json is None and args.csv is None:
        return
    stems: dict[str, Path] = {}
    for path in files:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise ParameterError(
                f"{other} and {path} would both be written to {path.stem}; tag them one by one, "
                "into different folders"
            )


def _tag_all(
    files: Sequence[Path], args: argparse.Namespace, tagger: Tagger, tracker: Tracker
) -> int:
    from tqdm import tqdm

    from l3prune.embedding import L3PruneWarning

    skipped = 0
    # A bar for a single file would only flicker.
    for path in tqdm(files, unit="file", disable=(args.quiet or len(files) == 1) or None):
        told = []
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", L3PruneWarning)
                table = (_framewise if args.framewise else _clipwise)(path, args, tagger, tracker)
            if not args.quiet:
                told = [f"warning: {path}: {warning.message}" for warning in caught]
                tqdm.write("\n".join([*table, ""]), file=sys.stdout)
        except L3PruneError as error:
            if len(files) == 1:
                raise
            skipped += 1
            text = " ".join(str(error).split())
            told = [f"skipped: {text if str(path) in text else f'{path}: {text}'}"]
        for line in told:
            tqdm.write(line, file=sys.stderr)
    if skipped == len(files):
        raise L3PruneError("every file was skipped; nothing was tagged")
    return 1 if skipped else 0


def _clipwise(path: Path, args: argparse.Namespace, tagger: Tagger, tracker: Tracker) -> list[str]:
    """Tag a file, write what is asked for, and give its table."""
    from l3prune.audio import load_audio
    from l3prune.tagging import tag

    audio, rate = load_audio(path)
    top = tracker.top(tag(audio, rate, tagger)[0], args.top_k)
    rows = [{"label": label, "score": round(score, 6)} for label, score in top]
    if args.json is not None:
        write_json(
            Path(args.json) / f"{path.stem}.json",
            _record(path, len(audio) / rate, tagger) | {"sounds": rows},
        )
    if args.csv is not None:
        write_table(Path(args.csv) / f"{path.stem}.csv", rows)
    return _table(path, len(audio) / rate, top)


def _framewise(path: Path, args: argparse.Namespace, tagger: Tagger, tracker: Tracker) -> list[str]:
    """The same over time: of the sounds with the highest peaks."""
    from l3prune.audio import load_audio
    from l3prune.tagging import tag_frames

    audio, rate = load_audio(path)
    framewise, seconds = tag_frames(audio, rate, tagger, window=args.window, hop_size=args.hop_size)
    labels = [label for label, _ in tracker.top(framewise.max(axis=0), args.top_k)]
    numbers = [tracker.labels.find(label) for label in labels]
    scores = framewise[:, numbers].astype(float).round(6)
    if args.json is not None:
        write_json(
            Path(args.json) / f"{path.stem}.json",
            _record(path, len(audio) / rate, tagger)
            | {"labels": labels, "seconds": seconds.round(6), "scores": scores},
        )
    if args.csv is not None:
        rows = [
            {"seconds": round(time, 6), **dict(zip(labels, row.tolist(), strict=True))}
            for time, row in zip(seconds.tolist(), scores, strict=True)
        ]
        write_table(Path(args.csv) / f"{path.stem}.csv", rows)
    peaks = scores.argmax(axis=0)
    return _table(
        path,
        len(audio) / rate,
        [
            (f"{seconds[peak]:8.2f} s  {label}", float(scores[peak, place]))
            for place, (peak, label) in enumerate(zip(peaks, labels, strict=True))
        ],
    )


def _record(path: Path, seconds: float, tagger: Tagger) -> dict[str, Any]:
    return {"file": str(path), "duration": round(seconds, 6), "network": tagger.name}


def _table(path: Path, seconds: float, top: Sequence[tuple[str, float]]) -> list[str]:
    blocks = views.can_show_blocks(sys.stdout.encoding)
    width = shutil.get_terminal_size().columns
    return [f"{path} ({seconds:.1f} s)", *views.lines(top, width, blocks=blocks)]


if __name__ == "__main__":
    sys.exit(main())
