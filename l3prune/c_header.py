"""C headers with a LiteRT file, for microcontrollers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write

_NAMES = """
    ABS ADD ADD_N ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_TO_SPACE_ND CAST CEIL CONCATENATION CONV_2D
    COS CUMSUM DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE ELU EQUAL EXP EXPAND_DIMS FILL FLOOR
    FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF
    L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR
    LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE
    REDUCE_MAX RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ROUND RSQRT SHAPE SIN
    SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUEEZE STRIDED_SLICE SUB SUM
    SVDF TANH TRANSPOSE TRANSPOSE_CONV UNPACK
    """

#: Builtin operators of LiteRT for Microcontrollers, each added by a method of its
#: MicroMutableOpResolver. Those of its early versions, so that older copies will do.
MICRO_OPERATORS = frozenset(_NAMES.split())

#: Of the array. The runtime reads it where it lies.
_ALIGNMENT = 16

_LINE = 16


def check_operators(operators: Sequence[tuple[str, str]]) -> None:
    """Refuse operators that LiteRT for Microcontrollers has not.

    Parameters
    ----------
    operators : sequence of (str, str)
        Each its name and that of its output, as `litert.operators` gives them.

    Raises
    ------
    ParameterError
        The message names the first such operator, the layer that it is of, and other formats.

    Examples
    --------
    >>> check_operators([("CONV_2D", "net/conv_1/Conv2D")])
    >>> check_operators([("RFFT2D", "net/log_mel/rfft")])
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: LiteRT for Microcontrollers has no operator RFFT2D (net/log_...
    """
    for kind, output in operators:
        if kind not in MICRO_OPERATORS:
            raise ParameterError(
                f"LiteRT for Microcontrollers has no operator {kind} ({output}); formats that "
                "support it: litert-float32, litert-float16, litert-dynamic, litert-int8, "
                "saved-model"
            )


def write_header(
    content: bytes,
    path: str | os.PathLike[str],
    name: str,
    constants: Mapping[str, int],
    operators: Sequence[str],
) -> None:
    """Write bytes as a C array, aligned, with constants before it; C11 and C++11.

    Parameters
    ----------
    content : bytes
    path : str or path-like
    name : str
        What all names in the header begin with, as C allows it.
    constants : mapping of str to int
        Of the model, such as its shapes; macros with the name in front.
    operators : sequence of str
        That the model needs, for the comment.

    Examples
    --------
    >>> path = Path(tempfile.mkdtemp()) / "net.h"
    >>> write_header(b"TFL3", path, "net", {"INPUT_ROWS": 64}, ["CONV_2D"])
    >>> read_header(path), "#define NET_INPUT_ROWS 64" in path.read_text()
    (b'TFL3', True)
    """
    upper = name.upper()
    rows = [content[start : start + _LINE] for start in range(0, len(content), _LINE)]
    lines = [
        "/* A network for LiteRT for Microcontrollers, written by l3prune.",
        " *",
        " * Operators that its resolver must have:",
        *(f" *   {operator}" for operator in sorted(set(operators))),
        " */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        f"#define {upper}_BYTES {len(content)}",
        f"#define {upper}_OPERATORS {len(set(operators))}",
        *(f"#define {upper}_{key} {value}" for key, value in constants.items()),
        "",
        "#ifdef __cplusplus",
        f"alignas({_ALIGNMENT})",
        "#else",
        f"_Alignas({_ALIGNMENT})",
        "#endif",
        f"static const unsigned char {name}[{len(content)}] = {{",
        *("  " + ",".join(f"0x{byte:02x}" for byte in row) + "," for row in rows),
        "};",
        "",
        f"#endif /* {upper}_H */",
        "",
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="ascii")


def read_header(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a header's array.

    Raises
    ------
    L3PruneError
        The file has no such array, or one of another length than it says.

    Examples
    --------
    See `write_header`.

    >>> read_header(os.devnull)
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /dev/null has no array of bytes as l3prune writes it
    """
    text = Path(path).read_text(encoding="ascii")
    found = re.search(r"unsigned char \w+\[(\d+)\] = \{([^}]*)\}", text)
    content = bytes(int(each, 16) for each in found[2].split(",") if each.strip()) if found else b""
    if found is None or len(content) != int(found[1]):
        raise L3PruneError(f"{path} has no array of bytes as l3prune writes it")
    return content


def compiled_bytes(path: str | os.PathLike[str], name: str) -> bytes | None:
    """The bytes of a header's array as a program has them; None without a C compiler.

    Raises
    ------
    L3PruneError
        The header does not compile without warnings, or its array is not aligned.

    Examples
    --------
    >>> path = Path(tempfile.mkdtemp()) / "net.h"
    >>> write_header(b"TFL3", path, "net", {}, [])
    >>> compiled_bytes(path, "net") in (b"TFL3", None)
    True
    """
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if compiler is None:
        return None
    program = (
        f'#include <stdint.h>\n#include <stdio.h>\n#include "header.h"\n'
        "int main(void) {\n"
        f"  if ((uintptr_t){name} % {_ALIGNMENT}) return 1;\n"
        f"  return fwrite({name}, 1, sizeof {name}, stdout) != {name.upper()}_BYTES;\n"
        "}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "main.c", Path(folder) / "main"
        source.write_text(program, encoding="ascii")
        # Under a name that C takes between quotes.
        shutil.copyfile(path, source.with_name("header.h"))
        flags = ("-std=c11", "-Wall", "-Wextra", "-Werror")
        line = [compiler, *flags, str(source), "-o", str(made)]
        built = subprocess.run(line, capture_output=True, text=True, check=False)
        if built.returncode:
            raise L3PruneError(f"{path} does not compile: {built.stderr[:500]}")
        ran = subprocess.run([made], capture_output=True, check=False)
        if ran.returncode:
            raise L3PruneError(f"{path}: its array is not aligned to {_ALIGNMENT} bytes")
        return ran.stdout
