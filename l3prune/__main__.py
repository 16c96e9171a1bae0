"""python -m l3prune: embeddings of audio files."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from l3prune.audio import find_audio
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import new_folder
from l3prune.quiet import load_tensorflow


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

    load_tensorflow()
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
        output = output_path(path, args.output_dir, args.suffix).absolute()
        other = outputs.setdefault(output, path)
        if other.resolve() != path.resolve():
            raise ParameterError(
                f"{other} and {path} would both be written to {output}; embed them one by one, "
                "with different --suffix or --output-dir"
            )
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
        get_embedding(np.zeros(1), 8000, **options)
    folder = new_folder(args.output_dir) if args.output_dir else contextlib.nullcontext()
    with folder:
        skipped = 0
        for path in tqdm(list(outputs.values()), unit="file", disable=args.quiet or None):
            lines = []
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", L3PruneWarning)
                    process_file(path, args.output_dir, args.suffix, **options)
                if not args.quiet:
                    lines = [f"warning: {path}: {warning.message}" for warning in caught]
            except L3PruneError as error:
                lines = [f"skipped: {' '.join(str(error).split())}"]
                skipped += 1
            for line in lines:
                tqdm.write(line, file=sys.stderr)
        if skipped == len(outputs):
            raise L3PruneError("every file was skipped; nothing was written")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
