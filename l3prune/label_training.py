"""The third way to retrain a pruned network: on the labels of a corpus, in one go or by layers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import tf_keras as keras

from l3prune import litert, models, surgery
from l3prune.checkpoints import LATEST
from l3prune.classification import objective_of, train_on_labels
from l3prune.corpus import Corpus
from l3prune.datasets.splits import SPLIT
from l3prune.devices import Devices
from l3prune.errors import Interrupted, ParameterError
from l3prune.evaluation import Report
from l3prune.files import atomic_write, write_json, write_table
from l3prune.gradual import MaskUpdate
from l3prune.options import MODEL_TYPES
from l3prune.plan import PruningPlan
from l3prune.pruner import Wish, prune
from l3prune.quantization import to_float16
from l3prune.recipes import Recipe
from l3prune.retraining import Retraining
from l3prune.sizes import SCENES_LIMIT, float16_sizes
from l3prune.weights import save_network
from l3prune.windows import WindowSource

#: In a run's folder: how large the networks are in 16 bits, and the result so.
SIZES = "sizes.json"
FLOAT16, LITERT = "model_float16.h5", "model.float16.tflite"


class LabelTraining(Retraining):
    """The pruned network learns the labels on; see `classification`.

    Examples
    --------
    >>> from l3prune.options import parse
    >>> words = ["/nowhere.h5", "ESC-50", "out", "--layerwise", "--labels", "esc50"]
    >>> LabelTraining(parse(words))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: /nowhere.h5; published weights have ...
    """

    def __init__(self, args: argparse.Namespace, devices: Devices | None = None) -> None:
        super().__init__(args, devices)
        name = MODEL_TYPES.get(args.model_type, args.model_type)
        self.unpruned = self.whole = models.load(args.weight_path, name, input="waveform")
        self.corpus = Corpus.of(args, args.labels, args.train_data_dir)
        self.corpus.check(self.whole)
        self.corpus.check_weights(args.weight_path)
        self._details: dict[str, Any] = {}
        self._sizes16: dict[str, Any] = {}

    def check(self, pruned: keras.Model) -> None:
        self.corpus.check(pruned)
        objective_of(pruned, self.corpus.dataset.multi_label).figure(self.args.best_by)

    def open(self, cache_dir: Path) -> None:
        self.corpus.open(self.whole, cache_dir, quiet=self.args.quiet)

    @property
    def windows(self) -> int:
        return len(self.corpus.train)

    def check_batch(self) -> None:
        size = self.args.train_batch_size
        if self.args.retrain and size > self.windows:
            raise ParameterError(
                f"--train-batch-size {size} is more than the {self.windows} clips to train on; "
                "give at most so many"
            )

    def _sound(self) -> WindowSource:
        raise ParameterError("criteria from data score an embedding, not labels; take l1")

    def begin(self, pruned: keras.Model, plan: PruningPlan) -> keras.Model:
        return surgery.remove_filters(pruned, PruningPlan({}))  # a copy

    def train(
        self,
        student: keras.Model,
        run_dir: Path,
        recipe: Recipe,
        update: MaskUpdate | None,
        resumed: bool,
    ) -> tuple[dict[str, keras.Model], list[dict[str, float]]]:
        if self.devices.chief:
            write_table(run_dir / SPLIT, self.corpus.parts())
        networks: dict[str, keras.Model] = {}
        history: list[dict[str, float]] = []
        for number, wish in enumerate(self.later, start=1):
            folder = run_dir / f"step-{number}"
            # What is left of a run that was stopped; a finished one only gives its weights.
            begun = self.devices.told_by_chief("yes" if (folder / LATEST).is_file() else "no")
            try:
                history += self._train(student, folder, recipe, None, begun == "yes")
            except Interrupted as error:
                raise Interrupted(str(error).replace(str(folder), str(run_dir))) from error
            networks[f"retrained {number}"] = student
            student = self._cut(student, wish)
        last = self._train(student, run_dir, recipe, update, resumed)
        history = [{**row, "epoch": epoch} for epoch, row in enumerate([*history, *last], start=1)]
        networks["retrained"] = student
        if self.args.float16:
            networks["float16"] = self._halved(student, run_dir)
        return networks, history

    def _cut(self, network: keras.Model, wish: Wish) -> keras.Model:
        keras.utils.set_random_seed(self.args.random_state)  # for fresh weights
        return prune(network, wish)[0]

    def _train(
        self,
        student: keras.Model,
        folder: Path,
        recipe: Recipe,
        update: MaskUpdate | None,
        resumed: bool,
    ) -> list[dict[str, float]]:
        return train_on_labels(
            student,
            self.corpus.drawn(),
            self.corpus.validation,
            folder,
            recipe=recipe,
            augment=self.corpus.change(student),
            gamma_l1=self.corpus.gamma_l1,
            **self._sizes(),
            pruner=update,
            devices=self.devices,
            resume=resumed,
            quiet=self.args.quiet,
        )

    def _halved(self, network: keras.Model, run_dir: Path) -> keras.Model:
        """The network in 16 bits, written as weights and as LiteRT file."""
        halved = to_float16(surgery.strip_masks(network))
        if self.devices.chief:
            save_network(halved, run_dir / FLOAT16, origin={"from": "best epoch, in float16"})
            content = litert.convert(network, "float16")
            with atomic_write(run_dir / LITERT) as temporary:
                temporary.write_bytes(content)
            tensors, values = litert.float16_values(content)
            self._sizes16["litert"] = {
                "tensors": tensors,
                "parameters": values,
                "bytes": 2 * values,
            }
        return halved

    def figures(self, name: str, network: keras.Model, run_dir: Path) -> dict[str, float | None]:
        figures, self._details[name] = self.corpus.figures(network, quiet=self.args.quiet)
        sizes = float16_sizes(network)
        self._sizes16[name] = {
            rule: {**vars(size), "kb": size.kb, "within_limit": size.within()}
            for rule, size in sizes.items()
        }
        return {
            **figures,
            "parameters": sizes["all"].parameters,
            "float16_kb": sizes["folded"].bytes / 1024,
        }

    def audio(self, network: keras.Model) -> keras.Model:
        return network

    def write(self, report: Report, run_dir: Path) -> None:
        self.corpus.write_report(run_dir, report, self._details)
        write_json(run_dir / SIZES, {"limit": SCENES_LIMIT, "networks": self._sizes16})
