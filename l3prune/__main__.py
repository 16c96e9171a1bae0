"""python -m l3prune: embeddings of audio files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from l3prune.audio import find_audio
from l3prune.errors import L3PruneError, ParameterError, command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune",
        description="Write the embedding of each audio file as .npz with the arrays `embedding` "
        "(windows, size) float32 and `timestamps` (windows,) in seconds.",
        epilog="Exit code: 0 all written, 1 some files were skipped (each is named), 2 wrong "
        "arguments or no file written.",
    )
    parser.add_argument("inputs", nargs="+", help="audio files, and folders searched for them")
    parser.add_argument("--model", required=True, help="weight file of the network (.h5, .h5.gz)")
    parser.add_argument("--output-dir", "-o", help="default: beside each audio file")
    parser.add_argument("--suffix", "-x", help="put behind the file's name, after an underscore")
    parser.add_argument(
        "--hop-size", "-t", type=float, default=0.1, help="seconds between windows (%(default)s)"
    )
    parser.add_argument(
        "--no-centering",
        "-n",
        action="store_true",
        help="first window starts at the first sample, instead of being centred on it",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="windows computed at once (%(default)s)"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress, no warnings")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m l3prune --help`."""
    args = _parser().parse_args(argv)
    files: list[Path] = []
    for given in map(Path, args.inputs):
        if given.is_dir():
            files += find_audio(given)
        elif given.exists():
            files.append(given)
        else:
            raise L3PruneError(f"no such file or folder: {given}")
    if not files:
        raise L3PruneError(f"no audio files (wav, flac, ogg, mp3) in {', '.join(args.inputs)}")

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import warnings

    import numpy as np
    from tqdm import tqdm

    from l3prune.embedding import (
        L3PruneWarning,
        get_embedding,
        load_model,
        output_path,
        process_file,
    )

    outputs: dict[Path, Path] = {}
    for path in files:
        output = output_path(path, args.output_dir, args.suffix)
        if output in outputs and outputs[output] != path:
            raise ParameterError(
                f"{outputs[output]} and {path} would both be written to {output}; "
                "give them different --output-dir, or leave it out"
            )
        outputs[output] = path
    if args.quiet:
        warnings.simplefilter("ignore", L3PruneWarning)
    model = load_model(args.model)
    options = {
        "model": model,
        "hop_size": args.hop_size,
        "center": not args.no_centering,
        "batch_size": args.batch_size,
    }
    with warnings.catch_warnings():
        # Wrong options show here, once, and not as a reason to skip every file.
        warnings.simplefilter("ignore", L3PruneWarning)
        get_embedding(np.zeros(8000), 8000, **options)
    skipped = 0
    for path in tqdm(list(outputs.values()), unit="file", disable=args.quiet):
        try:
            process_file(path, args.output_dir, args.suffix, **options)
        except L3PruneError as error:
            print(f"skipped: {' '.join(str(error).split())}", file=sys.stderr)
            skipped += 1
    if skipped == len(outputs):
        return 2
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
