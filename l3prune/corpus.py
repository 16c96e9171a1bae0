"""A labelled corpus as a run uses it: its split, its maps, and what is reported of a network."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tf_keras as keras

from l3prune.augmentation import SAMPLERS, Balanced, BatchChange
from l3prune.classification import evaluate, front_end_layer, open_maps
from l3prune.datasets import load_dataset
from l3prune.datasets.metadata import read_rows
from l3prune.datasets.splits import SPLIT, split_dataset
from l3prune.errors import ParameterError
from l3prune.evaluation import Report
from l3prune.files import atomic_write, write_json
from l3prune.labelled import LabelledMaps, LabelledSource
from l3prune.networks import network_config
from l3prune.slimming import check_penalised, check_strength

#: In a run's folder: figures by network, those by class and device, and a table for people.
REPORT, DETAILS, TABLE = "report.json", "labels.json", "report.md"


class Corpus:
    """One corpus, split into clips to train, to validate and to test on.

    Parameters
    ----------
    name : str
        One of `datasets.list_datasets()`.
    data_dir : str
        Its root folder.
    test_fold, ratio, seed
        See `datasets.splits.split_dataset`.
    fill : {"repeat", "zeros"}
        How clips that are shorter than a network's input are filled.
    sampler, augment
        How training clips are drawn and changed, of `augmentation.SAMPLERS` and `CHANGES`.
    gamma_l1
        Strength of the penalty on scales, see `slimming`.

    Attributes
    ----------
    train, validation, test : LabelledMaps
        After `open`.

    Raises
    ------
    L3PruneError
        The corpus is not laid out as it should be, or cannot be split so.

    Examples
    --------
    >>> Corpus("esc51", ".")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: dataset 'esc51' is unknown; known: ...
    """

    train: LabelledMaps
    validation: LabelledMaps
    test: LabelledMaps

    def __init__(
        self,
        name: str,
        data_dir: str,
        test_fold: int | None = None,
        ratio: float = 0.3,
        seed: int = 0,
        fill: str = "repeat",
        sampler: str = "uniform",
        augment: Sequence[str] = (),
        gamma_l1: float = 0.0,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ParameterError(f"sampler {sampler!r} is unknown; {', '.join(SAMPLERS)}")
        BatchChange(tuple(augment))  # refuses unknown ones
        check_strength(gamma_l1)
        self.dataset = load_dataset(name, data_dir)
        self.split = split_dataset(self.dataset, test_fold, ratio=ratio, seed=seed)
        self.fill = fill
        self.sampler = sampler
        self.changes = tuple(augment)
        self.gamma_l1 = gamma_l1

    @classmethod
    def of(cls, args: argparse.Namespace, name: str, data_dir: str) -> Corpus:
        """The corpus that the options of `arguments.label_options` describe."""
        return cls(
            name,
            data_dir,
            args.test_fold,
            args.validation_ratio,
            args.split_seed,
            args.fill,
            args.sampler,
            args.augment or (),
            args.gamma_l1,
        )

    def check(self, network: keras.Model) -> None:
        """Refuse a network that cannot be trained on these labels."""
        if front_end_layer(network).segment_frames is not None and self.changes:
            raise ParameterError(
                f"network {network.name} hears clips in segments, which cannot be augmented; leave "
                "--augment out"
            )
        if self.gamma_l1:
            check_penalised(network)
        classes = len(self.dataset.labels)
        named = network_config(network).labels
        if network.output_shape != (None, classes):
            raise ParameterError(
                f"network {network.name} gives {network.output_shape[-1]} values, "
                f"{self.dataset.name} has {classes} classes here; take a network that was built or "
                "trained for these"
            )

        for ours, its in zip(self.dataset.labels, named, strict=False):
            if ours != its:
                raise ParameterError(
                    f"class {its!r} of network {network.name} is {ours!r} in {self.dataset.name} "
                    "here; take a network that was trained on these classes"
                )

    def check_weights(self, path: str) -> None:
        """Refuse weights that have seen a clip to test on, as far as their run's folder tells."""
        table = Path(path).parent / SPLIT
        if not Path(path).is_file() or not table.is_file():
            return
        rows = [row for _, row in read_rows(table, ("clip", "part"))]
        known = {row["clip"] for row in rows if row["part"] in ("train", "validation")}
        tested = [self.dataset.clips[number].path.name for number in self.split.test]
        seen = [name for name in tested if name in known]
        if seen:
            raise ParameterError(
                f"{path} was trained or chosen on {len(seen)} of the {len(tested)} clips to test "
                f"on, {seen[0]} the first (see {table}); test on the fold that its run tested on, "
                "by --test-fold"
            )

    def open(self, network: keras.Model, cache_dir: Path, *, quiet: bool = False) -> None:
        """Compute the maps of all clips, or find them in the cache."""
        maps = open_maps(network, self.dataset, cache_dir, fill=self.fill, quiet=quiet)
        self.train = maps.subset(self.split.train)
        self.validation = maps.subset(self.split.validation)
        self.test = maps.subset(self.split.test)

    def normalise_for(self, network: keras.Model) -> None:
        """Give the maps of another network with the same front end but for its normalisation."""
        normalise = front_end_layer(network).normalise
        self.train, self.validation, self.test = (
            each.normalised(normalise) for each in (self.train, self.validation, self.test)
        )

    def drawn(self) -> LabelledSource:
        """The training clips, as the sampler draws them."""
        if self.sampler == "uniform":
            return self.train
        return Balanced(self.train, self.train.targets[self.train.rows])

    def change(self, network: keras.Model) -> BatchChange | None:
        """What is done to training batches of a network."""
        if not self.changes:
            return None
        return BatchChange(self.changes, front_end_layer(network).time_axis)

    def parts(self) -> list[dict[str, Any]]:
        """What each clip is for, as rows of a table."""
        part = {
            number: name
            for name in ("train", "validation", "test")
            for number in getattr(self.split, name)
        }
        return [
            {
                "clip": clip.path.name,
                "fold": clip.fold,
                "label": self.dataset.labels[clip.target],
                "group": clip.group or "",
                "device": clip.device or "",
                "part": part.get(number, ""),
            }
            for number, clip in enumerate(self.dataset.clips)
        ]

    def figures(
        self, network: keras.Model, *, quiet: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """How good a network is on validation and test clips, and the same in detail."""
        details = {
            name: evaluate(
                network,
                each,
                groups={kind: each.group(kind) for kind in each.groups},
                quiet=quiet,
            )
            for name, each in (("validation", self.validation), ("test", self.test))
        }
        figures = {
            f"{part}_{name}": found[name]
            for part, found in details.items()
            for name in ("accuracy", "log_loss", "map", "mauc", "d_prime", "lwlrap")
            if name in found
        }
        return figures, details

    @staticmethod
    def write_report(run_dir: Path, report: Report, details: Mapping[str, Any]) -> None:
        """Write the figures of several networks, in detail too, and as a table."""
        write_json(run_dir / DETAILS, details)
        report.to_json(run_dir / REPORT)
        lines = [f"```\n{report}\n```"]
        for name, parts in details.items():
            # Of several classes a clip, labels.json has the figures of each.
            kinds = [key for key in parts["test"] if key.startswith("by_")]
            for kind in kinds if "accuracy" in parts["test"] else ():
                lines += [f"\n{name}, test clips {kind.replace('_', ' ')}:\n", _table(parts, kind)]
        with atomic_write(run_dir / TABLE) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(parts: Mapping[str, Any], kind: str) -> str:
    rows = [
        f"| {name} | {found['clips']} | {100 * found['accuracy']:.1f} % | {found['log_loss']:.3f} |"
        for name, found in parts["test"][kind].items()
    ]
    return "\n".join(["| | clips | accuracy | log-loss |", "|---|---:|---:|---:|", *rows])
