"""l3prune compresses audio embedding networks and measures what it did.

Names are imported when they are first used (PEP 562), so `import l3prune` loads no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "L3PruneError": "l3prune.errors",
    "L3PruneWarning": "l3prune.embedding",
    "ParameterError": "l3prune.errors",
    "PruningPlan": "l3prune.plan",
    "Report": "l3prune.evaluation",
    "SparseModel": "l3prune.sparse",
    "apply_masks": "l3prune.surgery",
    "choose_engine": "l3prune.engines",
    "create_network": "l3prune.networks",
    "distill": "l3prune.distillation",
    "filter_groups": "l3prune.graph",
    "get_embedding": "l3prune.embedding",
    "get_image_embedding": "l3prune.images",
    "list_networks": "l3prune.networks",
    "load_model": "l3prune.engines",
    "load_network": "l3prune.weights",
    "plan_blocks": "l3prune.patterns",
    "plan_filterwise": "l3prune.filterwise",
    "plan_global": "l3prune.plan",
    "plan_layerwise": "l3prune.plan",
    "plan_pattern": "l3prune.patterns",
    "process_file": "l3prune.embedding",
    "remove_filters": "l3prune.surgery",
    "save_network": "l3prune.weights",
    "strip_masks": "l3prune.surgery",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'l3prune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
