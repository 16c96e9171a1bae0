"""The model card of a folder of exports, from their records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import read_json

#: In the folder.
CARD = "README.md"

#: Tells a card from other files of this name.
_MARK = "<!-- written by l3prune.export from the .json files beside it -->"

#: Of records, that tell them from other files of the kind.
_KEYS = {
    *("format", "values", "file", "network", "input", "output", "sample_rate", "front_end"),
    *("embedding_point", "engine", "error", "tolerance", "error_is", "windows", "windows_from"),
    *("source", "versions", "bytes", "gzip_bytes"),
}


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of the exports in a folder that are still there, in their files' order.

    Examples
    --------
    >>> import tempfile
    >>> read_records(Path(tempfile.mkdtemp()))
    []
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_json(path)
        except L3PruneError:  # somebody else's
            continue
        if (
            isinstance(record, dict)
            and set(record) >= _KEYS
            and f"{record['file']}.json" == path.name
            and isinstance(record["source"], dict)
            and path.with_suffix("").exists()
        ):
            records.append(record)
    return records


def check_folder(folder: Path, source: Mapping[str, Any]) -> None:
    """Refuse a folder with a README.md of another kind, or with exports of another network.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "README.md").write_text("My notes")
    >>> check_folder(folder, {"fingerprint": "0"})
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: .../README.md is not a model card; give another folder
    """
    card = folder / CARD
    if card.exists() and _MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise ParameterError(f"{card} is not a model card; give another folder")
    for record in read_records(folder):
        if record["source"].get("fingerprint") != source["fingerprint"]:
            raise ParameterError(
                f"{folder} holds exports of another network ({record['file']}); give another folder"
            )


def model_card(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown about exports of one network; every number in it is one of the records'.

    Examples
    --------
    >>> model_card([])
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no exports, no model card
    """
    if not records:
        raise ParameterError("no exports, no model card")
    first = records[0]
    source, end = first["source"], first["front_end"]
    (values,) = first["output"]["shape"]
    zeros = source["kernel_weights"] - source["nonzero_kernel_weights"]
    lines = [
        f"# {source['file']}",
        "",
        _MARK,
        "",
        f"An audio embedding network of the kind {first['network']}: one second of mono sound at "
        f"{first['sample_rate']} Hz becomes {values} values, taken from the last convolution's "
        f"output, {_POINTS[first['embedding_point']]}, max-pooled.",
        "",
        "| | |",
        "|---|---|",
        f"| source | {_cell(source['file'])}, sha256 {source['sha256']} |",
        f"| origin | {source.get('origin') or 'not stated by the weight file'} |",
        f"| licence | {source.get('licence') or 'not stated by the weight file'} |",
        f"| kernel weights | {source['kernel_weights']:,}, of these {zeros:,} zero "
        f"({100 * zeros / source['kernel_weights']:.2f} %) |",
        "",
        "## Files",
        "",
        "| file | takes | weights | bytes | gzipped | error | allowed | engine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in records:
        lines.append(
            f"| {_cell(each['file'])} | {each['input']['kind']} {_shape(each)} | {each['values']} "
            f"| {each['bytes']:,} | {each['gzip_bytes']:,} | {each['error']:.2g} "
            f"| {each['tolerance']:g} | {each['engine']} |"
        )
    lines += [
        "",
        f"The error is {first['error_is']}, on {_windows(records)}. A file is here only if its "
        "engine ran it and the error is within what is allowed.",
        "",
        "## Inputs and outputs",
        "",
        f"- `waveform`: float32, (1, {first['sample_rate']}) for each window, in [-1, 1]. The "
        "front end is in the file.",
        f"- `log_mel`: float32, bands x frames x 1, in dB below the window's maximum, [-80, 0]. "
        f"Hann windows of {end['n_dft']} samples every {end['hop_length']}, "
        f"{end['n_mels'] or 'linear'} bands, as {end['form']} computes them.",
        f"- Output: float32, ({values},) for each window.",
        "",
        "LiteRT files and C headers take one window at once; the others any number.",
    ]
    rounded = [each for each in records if each.get("zeros")]
    if rounded:
        lines += ["", "## Zeros", ""]
        lines += [f"- {each['file']}: {_zeros(each['zeros'])}" for each in rounded]
    return "\n".join([*lines, "", f"Made with {_versions(records)}.", ""])


_POINTS = {"raw": "before its BatchNorm and ReLU", "activated": "behind its BatchNorm and ReLU"}


def _zeros(counts: Mapping[str, int]) -> str:
    kept = counts["zero_in_network"]
    return (
        f"all {kept:,} zeros of the network are zeros in the file; " if kept else ""
    ) + f"{counts['rounded_to_zero']:,} other weights became zero when they were rounded."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _versions(records: Sequence[Mapping[str, Any]]) -> str:
    """Of all records: each has the packages that its own format needs."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, version in record["versions"].items():
            found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' or '.join(versions)}" for name, versions in found.items())


def _shape(record: Mapping[str, Any]) -> str:
    return " x ".join(map(str, record["input"]["shape"]))


def _windows(records: Sequence[Mapping[str, Any]]) -> str:
    kinds = dict.fromkeys((each["windows"], each["windows_from"]) for each in records)
    return " or ".join(f"{count} windows of {what}" for count, what in kinds)
