"""The sparse engine: pruned networks run on a CPU by their non-zero weights. No TensorFlow."""

from l3prune.sparse.convert import program_of
from l3prune.sparse.model import SparseModel, StepProfile, best_lanes

__all__ = ["SparseModel", "StepProfile", "best_lanes", "program_of"]
