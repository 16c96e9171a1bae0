"""python -m l3prune: embeddings of audio files and of images."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from l3prune.audio import AUDIO_EXTENSIONS
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.files import find_inputs, new_folder
from l3prune.quiet import load_tensorflow

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

#: Flags that choose published weights, and the option of `models.select` that each stands for.
_WEIGHTS = {
    "audio": {
        "model_type": "model_type",
        "emb_dim": "emb_dim",
        "retrain_type": "retrain_type",
        "model_sparsity": "sparsity",
        "input_repr": "input_repr",
        "content_type": "content_type",
        "audio_embedding_size": "embedding_size",
        "audio_frontend": "frontend",
    },
    "image": {
        "input_repr": "input_repr",
        "content_type": "content_type",
        "image_embedding_size": "embedding_size",
    },
}

#: Flags that mean nothing for the other kind of file.
_ONLY = {
    "audio": (
        *(flag for flag in _WEIGHTS["audio"] if flag not in _WEIGHTS["image"]),
        *("hop_size", "no_centering", "batch_size", "engine"),
    ),
    "image": ("image_embedding_size", "image_batch_size"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune",
        usage="python -m l3prune [audio | image] [options] INPUT [INPUT ...]",
        description="Write the embedding of each audio file as .npz with the arrays `embedding` "
        "(windows, size) float32 and `timestamps` (windows,) in seconds. With `image` in front, "
        "of each image file, `embedding` (1, size); with `audio` in front, OpenL3's weights are "
        "the default instead of EdgeL3's.",
        epilog="Exit code: 0 all written, 1 some files were skipped (each is named), 2 wrong "
        "arguments or no file written.",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, and folders of files")
    add = parser.add_argument
    add("--output-dir", "-o", help="default: beside each file")
    add("--suffix", "-x", help="put behind the file's name, after an underscore")
    add("--overwrite", "-ow", action="store_true", help="make outputs that exist already anew")
    add("--quiet", "-q", action="store_true", help="no progress, no warnings")

    audio = parser.add_argument_group("windows")
    audio.add_argument(
        "--hop-size",
        "--audio-hop-size",
        "-t",
        type=float,
        metavar="S",
        help="seconds between windows (0.1)",
    )
    audio.add_argument(
        "--no-centering",
        "--no-audio-centering",
        "-n",
        action="store_true",
        help="first window starts at the first sample, instead of being centred on it",
    )
    audio.add_argument(
        "--batch-size",
        "--audio-batch-size",
        "-ab",
        type=int,
        metavar="N",
        help="windows computed at once, at most (32)",
    )
    audio.add_argument(
        "--engine",
        metavar="NAME",
        help="sparse: by the weights that are not zero; dense: TensorFlow; auto: the faster one by "
        "what is left of the network (auto)",
    )

    network = parser.add_argument_group(
        "network", "a file or a name, or what chooses one of EdgeL3's or OpenL3's published weights"
    )
    add = network.add_argument
    add(
        "--model",
        help="weight file (.h5, .h5.gz), packed file (.l3p), or a name of `python -m "
        "l3prune.models list`; default: edgel3:sparse-95.45-ft",
    )
    add("--model-type", "-mtype", metavar="TYPE", help="EdgeL3: sparse or sea (sparse)")
    add("--emb-dim", "-e", type=int, metavar="N", help="EdgeL3, sea: 512, 256, 128 or 64 (128)")
    add("--retrain-type", "-retrain", metavar="TYPE", help="EdgeL3, sparse: ft or kd (ft)")
    add(
        "--model-sparsity",
        "-sp",
        type=float,
        metavar="PERCENT",
        help="EdgeL3, sparse: 53.5, 63.5, 72.3, 73.5, 81.0, 87.0, 90.5 or 95.45 (95.45)",
    )
    add("--input-repr", "-i", metavar="REPR", help="OpenL3: linear, mel128 or mel256 (mel256)")
    add("--content-type", "-c", metavar="TYPE", help="OpenL3: music or env (music)")
    add(
        "--audio-embedding-size",
        "-as",
        type=int,
        metavar="N",
        help="OpenL3, audio: 6144 or 512 (6144)",
    )
    add("--audio-frontend", "-af", metavar="NAME", help="OpenL3: kapre or librosa (kapre)")
    add(
        "--image-embedding-size",
        "-is",
        type=int,
        metavar="N",
        help="OpenL3, image: 8192 or 512 (8192)",
    )
    add(
        "--image-batch-size",
        "-ib",
        type=int,
        metavar="N",
        help="accepted from scripts for openl3: each image file is computed alone",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m l3prune --help`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # OpenL3's first word; a file of that name is a file all the same.
    word = argv.pop(0) if argv[:1] in (["audio"], ["image"]) and not Path(argv[0]).exists() else ""
    args = _parser().parse_args(argv)
    kind = word or "audio"
    weights = {
        option: getattr(args, flag)
        for flag, option in _WEIGHTS[kind].items()
        if getattr(args, flag) is not None
    }
    for flag in _ONLY["image" if kind == "audio" else "audio"]:
        if getattr(args, flag) not in (None, False):
            raise ParameterError(f"--{flag.replace('_', '-')} is not for {kind} files")
    if args.model is not None and weights:
        raise ParameterError(
            f"--model is given, and {', '.join(weights)}, which choose published weights; give "
            "one or the other"
        )
    if word == "audio" and args.model is None:
        weights.setdefault("content_type", "music")  # OpenL3's
    files = find_inputs(
        args.inputs, IMAGE_EXTENSIONS if kind == "image" else AUDIO_EXTENSIONS, kind
    )
    from l3prune.sparse import is_packed

    chosen: tuple[str, dict[str, Any]] = (args.model, {})
    if args.model is None or not is_packed(args.model):  # a packed file needs no TensorFlow
        from l3prune import models

        if args.model is None:
            chosen = (models.select_image if kind == "image" else models.select)(**weights)
        models.locate(chosen[0])  # a wrong name shows before TensorFlow has started
        load_tensorflow()
    from l3prune.embedding import load_model, output_path

    outputs: dict[Path, Path] = {}
    for path in files:
        output = output_path(path, args.output_dir, args.suffix).absolute()
        other = outputs.setdefault(output, path)
        if other.resolve() != path.resolve():
            raise ParameterError(
                f"{other} and {path} would both be written to {output}; embed them one by one, "
                "with different --suffix or --output-dir"
            )
    model = load_model(chosen[0], kind=kind, **chosen[1])
    told, process = _images(args, model) if kind == "image" else _audio(args, model)
    wanted = [path for output, path in outputs.items() if args.overwrite or not output.is_file()]
    kept = len(outputs) - len(wanted)
    if kept and not args.quiet:
        print(f"kept: {kept} outputs that exist already; --overwrite makes them anew")
    return _process_all(wanted, process, args, told, nothing_kept=not kept)


def _audio(args: argparse.Namespace, model: Any) -> tuple[str, Callable[..., Path]]:
    """What to tell of the computation, and what computes one file."""
    import numpy as np

    from l3prune.embedding import L3PruneWarning, get_embedding, process_file
    from l3prune.engines import choose_engine

    engine = choose_engine(model, args.engine or "auto")
    options = {
        "model": model,
        "engine": engine.name,
        "hop_size": 0.1 if args.hop_size is None else args.hop_size,
        "center": not args.no_centering,
        "batch_size": 32 if args.batch_size is None else args.batch_size,
    }
    with warnings.catch_warnings():
        # Wrong options show here, once, and not as a reason to skip every file.
        warnings.simplefilter("ignore", L3PruneWarning)
        get_embedding(np.zeros(1), 8000, **options)
    return f"engine: {engine.name} ({engine.reason})", functools.partial(
        process_file, verbose=not args.quiet, **options
    )


def _images(args: argparse.Namespace, model: Any) -> tuple[str, Callable[..., Path]]:
    import numpy as np

    from l3prune.images import get_image_embedding, process_image_file

    # Refuses other networks once, and not for every file.
    size = 32 if args.image_batch_size is None else args.image_batch_size
    get_image_embedding(np.ones((224, 224, 3)), model=model, batch_size=size)
    return "", functools.partial(process_image_file, model=model)


def _process_all(
    paths: Sequence[Path],
    process: Callable[..., Path],
    args: argparse.Namespace,
    told: str,
    *,
    nothing_kept: bool,
) -> int:
    from tqdm import tqdm

    from l3prune.embedding import L3PruneWarning

    folder = new_folder(args.output_dir) if args.output_dir else contextlib.nullcontext()
    with folder:
        if told and not args.quiet:
            print(told)
        skipped = 0
        for path in tqdm(paths, unit="file", disable=args.quiet or None):
            lines = []
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", L3PruneWarning)
                    process(path, args.output_dir, args.suffix)
                if not args.quiet:
                    lines = [f"warning: {warning.message}" for warning in caught]
            except L3PruneError as error:
                lines = [f"skipped: {' '.join(str(error).split())}"]
                skipped += 1
            for line in lines:
                tqdm.write(line, file=sys.stderr)
        if skipped and skipped == len(paths) and nothing_kept:
            raise L3PruneError("every file was skipped; nothing was written")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
