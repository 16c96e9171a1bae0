"""Engines that run networks, each in a process of its own that answers over a pipe.

Requests and answers are lines of JSON. Requests are `load` (a model's file), `run` (so many
times), `compute` (the output, for checks) and `forget` (all models).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import L3PruneError

#: A batch of inputs -> a batch of outputs.
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Engine:
    """How to run models.

    Attributes
    ----------
    name : str
        For people.
    load : callable (path, batch, threads) -> Run
        Imports its package, which may be missing.
    file : str
        What a model's file is called behind its own name; {batch} is the number of inputs.
    package : str
        Of the engine, whose version is told.
    precision : str
        "fp32", "bf16" or "int8".
    environment : dict of str to str
        Of the process: what holds the engine to an older CPU.
    dense : bool
        Multiplies zeros as well.
    """

    name: str
    load: Callable[[Path, int, int], Run]
    file: str
    package: str
    precision: str = "fp32"
    environment: dict[str, str] = field(default_factory=dict)
    dense: bool = True


class Missing(Exception):
    """The engine cannot run here, and that is no error."""


def _tensorflow(path: Path, batch: int, threads: int) -> Run:
    from l3prune.quiet import load_tensorflow

    load_tensorflow()
    import tensorflow as tf

    from l3prune.networks import inference
    from l3prune.weights import load_network

    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    return inference(load_network(path))


def _litert(path: Path, batch: int, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    (made,) = interpreter.get_output_details()

    def run(inputs: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], inputs)
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])

    return run


def _onnxruntime(path: Path, batch: int, threads: int) -> Run:
    import onnxruntime

    from l3prune.onnx_file import BATCH

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(BATCH, batch)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {"input": inputs})[0]


def _openvino(precision: str | None) -> Callable[[Path, int, int], Run]:
    def load(path: Path, batch: int, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        if precision == "bf16":
            known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in known:
                raise Missing("this CPU has no bfloat16 arithmetic")
        model = core.read_model(path)
        (given,) = model.inputs
        model.reshape([batch, *list(given.partial_shape)[1:]])
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if precision is not None:
            options["INFERENCE_PRECISION_HINT"] = precision
        request = core.compile_model(model, "CPU", options).create_infer_request()
        return lambda inputs: request.infer([inputs], share_inputs=True)[0]

    return load


def _ncnn(path: Path, batch: int, threads: int) -> Run:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise L3PruneError(f"ncnn cannot read {path}")

    def run(inputs: np.ndarray) -> np.ndarray:
        outputs = []
        # ncnn knows no batches.
        for each in np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)):
            extractor = net.create_extractor()
            # A copy: a first layer in place would write to the inputs, and wants them aligned.
            extractor.input("input", ncnn.Mat(each).clone())
            outputs.append(np.array(extractor.extract("output")[1]))
        return np.stack(outputs)

    return run


def _sparse(path: Path, batch: int, threads: int) -> Run:
    from l3prune.sparse import SparseModel
    from l3prune.sparse.packed import load_program

    return SparseModel(load_program(path), threads=threads)


def _only_with(flag: str, load: Callable[[Path, int, int], Run]) -> Callable[..., Run]:
    """Engines held to an older CPU are of interest where the CPU is newer."""

    def load_there(path: Path, batch: int, threads: int) -> Run:
        if flag not in cpu_facts().get("flags", "").split():
            raise Missing(f"no {flag} among the CPU's flags, nothing to hold it to")
        return load(path, batch, threads)

    return load_there


def cpu_facts() -> dict[str, str]:
    """What Linux says of the CPU; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    return dict(re.findall(r"^([\w ]+?)\s*: *(.*)$", text, re.MULTILINE))


#: What numba compiles for, in place of what the CPU has.
_AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}

#: AVX-512 with VNNI and without AMX, as all AMD and older Intel CPUs have it.
_VNNI = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}

#: The engine that the others' times are divided by, and the one that their outputs should equal.
OURS, REFERENCE = "l3prune", "TensorFlow"

ENGINES = {
    engine.name: engine
    for engine in (
        Engine(REFERENCE, _tensorflow, ".h5", "tensorflow"),
        Engine("LiteRT fp32", _litert, ".{batch}.tflite", "ai-edge-litert"),
        Engine("LiteRT int8", _litert, ".{batch}.int8.tflite", "ai-edge-litert", "int8"),
        Engine("ONNX Runtime fp32", _onnxruntime, ".onnx", "onnxruntime"),
        Engine("ONNX Runtime int8", _onnxruntime, ".int8.onnx", "onnxruntime", "int8"),
        Engine("OpenVINO fp32", _openvino("f32"), ".onnx", "openvino"),
        Engine("OpenVINO bf16", _openvino("bf16"), ".onnx", "openvino", "bf16"),
        Engine("OpenVINO int8", _openvino(None), ".int8.onnx", "openvino", "int8"),
        Engine(
            "OpenVINO int8, no AMX",
            _only_with("amx_int8", _openvino(None)),
            ".int8.onnx",
            "openvino",
            "int8",
            _VNNI,
        ),
        Engine("ncnn fp32", _ncnn, ".param", "ncnn"),
        Engine(OURS, _sparse, ".l3p", "numba", dense=False),
        Engine(
            f"{OURS}, AVX2",
            _only_with("avx512f", _sparse),
            ".l3p",
            "numba",
            environment=_AVX2,
            dense=False,
        ),
    )
}


class EngineProcess:
    """A process that runs one engine with so many threads, from its start to `close`.

    Methods raise `Missing` if the engine cannot run here, and L3PruneError if it fails.
    """

    def __init__(self, engine: Engine, threads: int, log: Path) -> None:
        self._log = log
        variables = {"OMP_NUM_THREADS": str(threads), **engine.environment}
        with log.open("w") as notices:
            self._process = subprocess.Popen(
                [sys.executable, __file__, engine.name, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=notices,
                text=True,
                env=os.environ | variables,
            )

    def load(self, model: str, path: Path, batch: int) -> None:
        """Prepare a model for so many inputs at once."""
        self._ask(do="load", model=model, path=str(path), batch=batch)

    def compute(self, model: str, inputs: Path, outputs: Path) -> np.ndarray:
        """What the model makes of the inputs in a .npy file; later runs take these inputs."""
        self._ask(do="compute", model=model, inputs=str(inputs), outputs=str(outputs))
        return np.load(outputs, allow_pickle=False)

    def run(self, model: str, count: int) -> tuple[list[float], float]:
        """Run so many times: milliseconds of each, and how many CPUs the process kept busy."""
        answer = self._ask(do="run", model=model, count=count)
        return answer["ms"], answer["cores"]

    def forget(self) -> None:
        """Drop all models; a process that has ended has none."""
        if self._process.poll() is None:
            self._ask(do="forget")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                self._process.stdin.close()
        self._process.wait()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            lines = self._log.read_text(errors="replace").split("\n")
            last = next((each for each in reversed(lines) if each.strip()), "no message")
            raise L3PruneError(f"its process ended with code {self._process.wait()}: {last}")
        answer = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        if "error" in answer:
            raise L3PruneError(answer["error"])
        return answer


def serve(engine: Engine, threads: int) -> None:
    """Answer requests until there are no more."""
    # Whatever libraries print goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    models: dict[str, Run] = {}
    inputs: dict[str, np.ndarray] = {}

    def answer(do: str, model: str = "", **request: Any) -> dict[str, Any]:
        if do == "load":
            models[model] = engine.load(Path(request["path"]), request["batch"], threads)
        elif do == "compute":
            inputs[model] = np.load(request["inputs"], allow_pickle=False)
            np.save(request["outputs"], np.asarray(models[model](inputs[model])))
        elif do == "run":
            return _timed(models[model], inputs[model], request["count"])
        elif do == "forget":
            models.clear()
            inputs.clear()
        return {}

    for line in sys.stdin:
        try:
            given = answer(**json.loads(line))
        except (Missing, ImportError) as error:
            given = {"missing": str(error)}
        except Exception as error:  # of whatever kind an engine raises
            given = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(given), file=answers, flush=True)


def _timed(run: Run, inputs: np.ndarray, count: int) -> dict[str, Any]:
    milliseconds = []
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(count):
        before = time.perf_counter()
        run(inputs)
        milliseconds.append(1000 * (time.perf_counter() - before))
    cores = (time.process_time() - busy) / (time.perf_counter() - start)
    return {"ms": milliseconds, "cores": cores}


if __name__ == "__main__":
    serve(ENGINES[sys.argv[1]], int(sys.argv[2]))
