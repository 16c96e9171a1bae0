"""Parts of a benchmark that run in a process of their own, for memory of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l3prune.errors import L3PruneError


def run_part(script: str, words: Sequence[str]) -> dict[str, Any]:
    """What a script prints as its last line, in JSON.

    Raises
    ------
    L3PruneError
        The process fails: with the last line that it wrote.
    """
    line = [sys.executable, script, *words]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    if ended.returncode:
        written = [each for each in ended.stderr.splitlines() if each.strip()]
        last = written[-1].removeprefix("error: ") if written else "no message"
        raise L3PruneError(
            f"a process of {Path(script).name} ended with code {ended.returncode}: {last}"
        )
    return json.loads(ended.stdout.splitlines()[-1])


def peak() -> float:
    """Peak resident memory of this program so far, MB (Linux).

    Not `ru_maxrss`, which a process takes over from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
