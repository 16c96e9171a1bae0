"""A labelled corpus as a run uses it: its split, its maps, and what is reported of a network."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from l3prune.packed_clips import PackedClips, computed_maps, pack_clips
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
    packed : str or None
        A file of packed clips, which maps are computed from in each step; see `packed_clips`. One
        that is there is the corpus, else `open` writes it. None keeps all maps on disk.
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
        packed: str | None = None,
        gamma_l1: float = 0.0,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ParameterError(f"sampler {sampler!r} is unknown; {', '.join(SAMPLERS)}")
        BatchChange(tuple(augment))  # refuses unknown ones
        check_strength(gamma_l1)
        self._packed = None if packed is None else Path(packed)
        self._clips: PackedClips | None = None
        if self._packed is not None and self._packed.exists():
            self._clips = PackedClips(self._packed)
            self.dataset = self._clips.dataset
            if self.dataset.name != name:
                raise ParameterError(
                    f"{packed} has the clips of {self.dataset.name}, not of {name}"
                )
        else:
            self.dataset = load_dataset(name, data_dir)
        self.split = split_dataset(self.dataset, test_fold, ratio=ratio, seed=seed)
        if self.dataset.multi_label:
            self._check_classes()
        self.fill = fill
        self.sampler = sampler
        self.changes = tuple(augment)
        self.gamma_l1 = gamma_l1

    def _check_classes(self) -> None:
        """Tell which classes will have no figures, before a clip is decoded."""
        labels = self.dataset.labels
        for part in ("validation", "test"):
            clips = [self.dataset.clips[number] for number in getattr(self.split, part)]
            classes = [target for clip in clips for target in {clip.target, *clip.further}]
            counts = np.bincount(classes, minlength=len(labels))
            missing = [
                label
                for label, count in zip(labels, counts.tolist(), strict=True)
                if count in (0, len(clips))
            ]
            if len(missing) == len(labels):
                raise ParameterError(
                    f"each class of {self.dataset.name} is in none or in all of the {len(clips)} "
                    f"{part} clips, so there is no figure to tell; give more clips, or split them "
                    "otherwise by --test-fold, --validation-ratio or --split-seed"
                )
            if missing:
                warnings.warn(f"{part}: {_left_out(len(labels), missing)}", stacklevel=3)

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
            args.packed,
            args.gamma_l1,
        )

    def check(self, network: keras.Model) -> None:
        """Refuse a network that cannot be trained on these labels."""
        form = _form(network)
        if self._packed is not None:
            self._check_packable(network)
        if self._clips is not None:
            self._clips.check(*form, self.fill)
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

    def _check_packable(self, network: keras.Model) -> None:
        layer = front_end_layer(network)
        whole = layer.segment_frames is None and network.input_shape[1] == 1
        if not whole or self.dataset.maps is not None:
            raise ParameterError(
                f"network {network.name} cannot train from packed clips of {self.dataset.name}: "
                "they are waveforms of one channel and one length; leave --packed out"
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
        """Compute the maps of all clips, or find them in the cache; or pack the clips."""
        if self._packed is None:
            maps = open_maps(network, self.dataset, cache_dir, fill=self.fill, quiet=quiet)
        else:
            maps = self._open_packed(self._packed, network, quiet)
        self.train = maps.subset(self.split.train)
        self.validation = maps.subset(self.split.validation)
        self.test = maps.subset(self.split.test)

    def _open_packed(self, path: Path, network: keras.Model, quiet: bool) -> LabelledMaps:
        rate, samples = _form(network)
        clips = self._clips
        if clips is None:
            form: dict[str, Any] = {"sample_rate": rate, "samples": samples, "fill": self.fill}
            pack_clips(self.dataset, path, quiet=quiet, **form)
            clips = PackedClips(path)
        clips.check(rate, samples, self.fill)
        ours, packed = (
            [clip.path.name for clip in each.clips] for each in (self.dataset, clips.dataset)
        )
        if ours != packed:
            raise ParameterError(
                f"{path} was written by another run meanwhile, of other clips; give another file"
            )
        return computed_maps(clips, front_end_layer(network))

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
        for part, found in next(iter(details.values()), {}).items():
            if missing := found.get("classes_left_out"):
                number = found["classes_scored"] + len(missing)
                lines.append(f"\n{part}: {_left_out(number, missing)}")
        for name, parts in details.items():
            # Of several classes a clip, labels.json has the figures of each.
            kinds = [key for key in parts["test"] if key.startswith("by_")]
            for kind in kinds if "accuracy" in parts["test"] else ():
                lines += [f"\n{name}, test clips {kind.replace('_', ' ')}:\n", _table(parts, kind)]
        with atomic_write(run_dir / TABLE) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _left_out(number: int, missing: Sequence[str]) -> str:
    named = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
    return (
        f"{len(missing)} of {number} classes are in no clip or in all and have no part in map, "
        f"mauc and d_prime: {named}"
    )


def _form(network: keras.Model) -> tuple[int, int]:
    """Sample rate and samples of the clips that a network takes."""
    layer, samples = front_end_layer(network), network.input_shape[-1]
    if samples is None:
        raise ParameterError(
            f"network {network.name} takes clips of any length, and training on labels needs to "
            "know it: build it with samples, such as --network-arguments '{\"samples\": 320000}'"
        )
    return layer.sample_rate, int(samples)


def _table(parts: Mapping[str, Any], kind: str) -> str:
    rows = [
        f"| {name} | {found['clips']} | {100 * found['accuracy']:.1f} % | {found['log_loss']:.3f} |"
        for name, found in parts["test"][kind].items()
    ]
    return "\n".join(["| | clips | accuracy | log-loss |", "|---|---:|---:|---:|", *rows])
