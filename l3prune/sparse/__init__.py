"""The sparse engine: pruned networks run on a CPU by their non-zero weights. No TensorFlow."""

from l3prune.sparse.convert import program_of
from l3prune.sparse.model import SparseModel, StepProfile, best_lanes
from l3prune.sparse.packed import describe, is_packed, load_program, save_program

__all__ = [
    "SparseModel",
    "StepProfile",
    "best_lanes",
    "describe",
    "is_packed",
    "load_program",
    "program_of",
    "save_program",
]
