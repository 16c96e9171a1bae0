"""A small run with a checkpoint after each step, to be killed: python -m tests.killed_run FOLDER.

It goes on with what it finds in the folder. "ready" on its output says that training begins.
"""

import sys
from pathlib import Path

from l3prune.checkpoints import LATEST
from l3prune.gradual import GradualPruning, sparsity_schedule
from l3prune.recipes import Recipe
from l3prune.training import fit
from tests.test_gradual_runs import noise, student, validation

STEPS, EPOCHS = 6, 6


def main(folder: Path) -> None:
    network = student()
    # Masks change in the middle of epochs and between them.
    pruner = GradualPruning(sparsity_schedule("polynomial", 0.7, end_step=24, frequency=4))
    recipe = Recipe(
        epochs=EPOCHS,
        learning_rate=1e-2,
        plateau_patience=1,
        checkpoint_interval=2,
        checkpoint_minutes=1e-9,
        batch_norm="freeze",
    )
    print("ready", flush=True)
    fit(
        network,
        *(noise, validation, STEPS, folder, recipe),
        pruner=pruner,
        resume=(folder / LATEST).is_file(),
        quiet=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
