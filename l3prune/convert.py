"""python -m l3prune.convert: a network of PANNs or E-PANNs from its PyTorch checkpoint."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.quiet import load_tensorflow

#: Those of `networks.cnn14`, and what begins the names of their published files.
NETWORKS = {
    "cnn14_decision_level_max": ("Cnn14_DecisionLevelMax",),
    "cnn14": ("Cnn14_mAP", "checkpoint_closeto"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.convert",
        usage="%(prog)s CHECKPOINT OUTPUT.h5 [options]",
        allow_abbrev=False,
        description="A weight file of l3prune from a PyTorch checkpoint of Cnn14, E-PANNs or "
        "Cnn14_DecisionLevelMax. PyTorch is not needed, and nothing in the checkpoint is run.",
        epilog="Exit code: 0 converted, 2 wrong input.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=".pth or .pt, or an .npz of the same names")
    add("output", metavar="OUTPUT.h5")
    add(
        "--network",
        metavar="NAME",
        help=f"{' or '.join(NETWORKS)}, whose tensors are alike (default: as the published file's "
        "name tells)",
    )
    add("--overwrite", action="store_true", help="replace OUTPUT.h5 if it exists")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see `python -m l3prune.convert --help`."""
    args = _parser().parse_args(argv)
    name = _network(args)
    output = Path(args.output)
    if output.suffix != ".h5":
        raise ParameterError(f"{output}: a weight file's name ends in .h5")
    if output.exists() and not args.overwrite:
        raise ParameterError(f"{output} exists; replace it by --overwrite, or give another name")
    from l3prune.torch_files import read_state

    state = read_state(args.checkpoint)
    load_tensorflow()
    from l3prune.networks import network_config
    from l3prune.panns import counts, network_of
    from l3prune.weights import save_network

    try:
        network = network_of(state, name)
    except L3PruneError as error:
        raise L3PruneError(f"{args.checkpoint}: {error}") from error
    digest = hashlib.sha256(Path(args.checkpoint).read_bytes()).hexdigest()
    origin = {"converted_from": Path(args.checkpoint).name, "converted_sha256": digest}
    save_network(network, output, origin=origin)
    filters = network_config(network).arguments["filters"]
    found = counts(network)
    print(f"{name}, filters {' '.join(map(str, filters))}, {found.trainable:,} parameters")
    print(output)


def _network(args: argparse.Namespace) -> str:
    if args.network is not None:
        if args.network not in NETWORKS:
            raise ParameterError(f"--network {args.network!r}; allowed: {', '.join(NETWORKS)}")
        return args.network
    found = Path(args.checkpoint).name
    for name, beginnings in NETWORKS.items():
        if found.startswith(beginnings):
            return name
    raise ParameterError(
        f"{found} does not tell which network it is; say it by --network {' or '.join(NETWORKS)}"
    )


if __name__ == "__main__":
    sys.exit(main())
