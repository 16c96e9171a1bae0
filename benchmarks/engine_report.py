"""The page, and its plots, of the figures that benchmarks/engines.py measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine_process import ENGINES, OURS  # beside this

from l3prune.files import atomic_write

Row = dict[str, Any]
Part = dict[str, Any]


def write_report(figures: dict[str, Any], folder: Path) -> None:
    """Write README.md, engines.png and sparsity.png."""
    text = "\n\n".join(_page(figures)) + "\n"
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    parts = [part for part in figures["parts"] if part["what"] == "sparsities"]
    _draw_engines(parts, folder / "engines.png")
    _draw_sparsities(parts, folder / "sparsity.png")


def ranked(part: Part, kind: str = "main") -> list[Row]:
    """Rows of one kind, fastest first, and those with a wrong output behind them."""
    rows = [row for row in part["rows"] if row["kind"] == kind]
    return sorted(rows, key=lambda row: (not row["right"], row["ms_min"]))


def _page(figures: dict[str, Any]) -> Iterator[str]:
    settings, environment = figures["settings"], figures["environment"]
    flags = " ".join(environment["flags"])
    versions = {
        name: value
        for name, value in environment.items()
        if name not in ("cpu", "flags", "cpus", "platform")
    }
    yield f"# Engines: milliseconds for one window of {settings['network']}"
    yield (
        "Made by `python benchmarks/engines.py "
        f"--network {settings['network']} --rounds {settings['rounds']} "
        f"--seconds-per-burst {settings['seconds_per_burst']:g} "
        f"--threads {','.join(map(str, settings['threads']))} "
        f"--batches {','.join(map(str, settings['batches']))}` "
        f"in {figures['minutes']:.0f} minutes."
    )
    yield f"{environment['cpu']}, {environment['cpus']} CPUs; flags {flags or 'unknown'}."
    yield (
        f"{environment['platform']}; "
        + ", ".join(f"{name} {value}" for name, value in versions.items())
        + "."
    )
    yield (
        "Times are of one window, the network behind its front end. Ratios are times divided by "
        f"{OURS}'s, of minima and of medians: above 1 {OURS} is faster. CPUs: how many the process "
        "kept busy, waiting threads included. MB: of the model's file; TensorFlow's is a "
        "compressed checkpoint. Error: of the output against TensorFlow's, the largest difference "
        "over the largest value. ncnn knows no batches and takes one window "
        "after the other. Engines with a wrong output stand last and are not compared."
    )
    for part in figures["parts"]:
        lines = (
            _sparsities(part, figures["lists"])
            if part["what"] == "sparsities"
            else _filterwise(part)
        )
        yield from lines
        without = [f"- {engine}: {reason}" for engine, reason in part["without_figures"].items()]
        if without:
            yield "\n".join(without)
    yield "![milliseconds by engine](engines.png)"
    if _with_lists(figures["parts"]):
        yield "![milliseconds by sparsity](sparsity.png)"


def _title(part: Part) -> str:
    threads = f"{part['threads']} thread{'s' if part['threads'] > 1 else ''}"
    return f"{threads}, batch {part['batch']}"


def _sparsities(part: Part, percents: dict[str, list[float]]) -> Iterator[str]:
    rows = ranked(part)
    if not rows:
        return
    amount = rows[0]["amount"]
    ours = next((row for row in rows if row["engine"] == OURS and row["right"]), None)
    yield f"## {_title(part)}"
    yield (
        f"{_percent(amount)} of the weights are zero, {_percent(_left(rows[0]))} of "
        f"{rows[0]['macs'] / 1e9:.2f} GMAC are left. Load average before: "
        f"{part['load_average']:.1f}."
    )
    head = "engine", "min ms", "median ms", "ratio of min", "of medians", "CPUs", "MB", "error"
    yield _table(
        head,
        [
            [
                row["engine"] if row["right"] else f"{row['engine']} (wrong output)",
                *(f"{row[key]:.2f}" for key in ("ms_min", "ms_median")),
                *_ratios(row, ours),
                f"{row['cores']:.1f}",
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['relative_error']:.0e}",
            ]
            for row in rows
        ],
    )
    zeros = {row["engine"]: row for row in rows}
    without = [row for row in ranked(part, "unpruned") if row["engine"] in zeros]
    if without:
        changes = [
            f"{row['engine']} {zeros[row['engine']]['ms_min'] / row['ms_min'] - 1:+.1%}"
            for row in without
        ]
        yield (
            "Whether dense engines gain by zeros: their minima on this network, against those on "
            f"the same network without zeros, {', '.join(changes)}."
        )
    lists = sorted([*rows, *ranked(part, "list")], key=lambda row: row["amount"])
    lists = [row for row in lists if row["engine"] == OURS]
    if len(lists) > 1:
        best = {precision: _best_dense(rows, precision) for precision in ("fp32", "int8")}
        names = [f"{row['engine']} / it" for row in best.values() if row]
        yield f"{OURS} by sparsity, and the fastest dense engines' minima divided by its:"
        yield _table(
            (
                "zeros of the layers, %",
                "of all",
                "MACs left",
                "min ms",
                "median ms",
                *names,
                "MB",
                "error",
            ),
            [
                [
                    " ".join(f"{each:g}" for each in percents[row["model"]]),
                    _percent(row["amount"]),
                    _percent(_left(row)),
                    *(f"{row[key]:.2f}" for key in ("ms_min", "ms_median")),
                    *(f"{each['ms_min'] / row['ms_min']:.2f}" for each in best.values() if each),
                    f"{row['bytes'] / 1e6:.2f}",
                    f"{row['relative_error']:.0e}" + ("" if row["right"] else " (wrong)"),
                ]
                for row in lists
            ],
        )


def _filterwise(part: Part) -> Iterator[str]:
    rows = ranked(part, "filterwise")
    amounts = sorted({row["amount"] for row in rows})
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    if not rows:
        return
    yield f"## Filters removed: {_title(part)}"
    yield "Minimum and, behind it, median of milliseconds. Load average before: " + (
        f"{part['load_average']:.1f}."
    )
    cells = {
        (row["engine"], row["amount"]): f"{row['ms_min']:.2f} / {row['ms_median']:.2f}"
        + ("" if row["right"] else f" (wrong: {row['relative_error']:.0e})")
        for row in rows
    }
    yield _table(
        ("engine", *(f"{100 * amount:g} % removed" for amount in amounts)),
        [[engine, *(cells.get((engine, each), "") for each in amounts)] for engine in engines],
    )


def _with_lists(parts: Sequence[Part]) -> list[Part]:
    """Parts with several sparsities."""
    return [part for part in parts if any(row["kind"] == "list" for row in part["rows"])]


def _best_dense(rows: Sequence[Row], precision: str) -> Row | None:
    found = [row for row in rows if row["dense"] and row["right"] and row["precision"] == precision]
    return found[0] if found else None


def _ratios(row: Row, ours: Row | None) -> list[str]:
    if ours is None or not row["right"]:
        return ["", ""]
    return [f"{row[key] / ours[key]:.2f}" for key in ("ms_min", "ms_median")]


def _left(row: Row) -> float:
    return row["nonzero_macs"] / row["macs"]


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown that is readable as it is."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for number, line in enumerate([head, rule, *rows]):
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append(f"| {' | '.join(cells)} |" if number != 1 else f"| {' | '.join(rule)} |")
    return "\n".join(lines)


def _draw_engines(parts: Sequence[Part], path: Path) -> None:
    """Bars of minima, with medians as marks; a panel a number of threads and windows."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(6 * min(len(parts), 2), 3.6 * -(-len(parts) // 2)))
    figure.set_layout_engine("constrained")
    colours = {"fp32": "C0", "bf16": "C2", "int8": "C1", OURS: "C3"}
    panels = figure.subplots(-(-len(parts) // 2), min(len(parts), 2), squeeze=False).ravel()
    for panel, part in zip(panels, parts, strict=False):
        rows = [row for row in ranked(part) if row["right"]]
        names = [row["engine"] for row in rows]
        minima = [row["ms_min"] for row in rows]
        colour = [colours[row["precision"] if row["dense"] else OURS] for row in rows]
        panel.barh(names, minima, color=colour, height=0.7)
        panel.plot([row["ms_median"] for row in rows], names, "|", color="black", markersize=9)
        for row in rows:
            end = max(row["ms_min"], row["ms_median"]), row["engine"]
            place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            panel.annotate(f"{row['ms_min']:.3g}", end, fontsize=8, **place)
        panel.margins(x=0.1)
        panel.set_title(_title(part), fontsize=10, loc="left")
        panel.set(xlabel="ms a window: minimum (bar), median (mark)")
        panel.invert_yaxis()
    for panel in panels[len(parts) :]:
        panel.set_visible(False)
    key = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=key, loc="outside upper right", ncols=len(key), fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_sparsities(parts: Sequence[Part], path: Path) -> None:
    """Milliseconds by sparsity, with lines for dense engines; a panel a number of threads."""
    from matplotlib.figure import Figure

    parts = _with_lists(parts)
    if not parts:
        path.unlink(missing_ok=True)  # of an earlier run
        return
    figure = Figure(figsize=(7.5 * len(parts), 4.8), layout="constrained")
    names = [engine.name for engine in ENGINES.values() if engine.dense]
    styles = {"fp32": "-", "bf16": "-.", "int8": "--"}
    for panel, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        rows = [row for row in ranked(part) if row["right"]]
        for row in sorted(rows, key=lambda row: -row["ms_min"]):
            if row["dense"]:
                label = f"{row['engine']} {row['ms_min']:.3g}"
                colour, style = f"C{names.index(row['engine'])}", styles[row["precision"]]
                panel.axhline(row["ms_min"], label=label, color=colour, linestyle=style)
        lists = [row for row in [*rows, *ranked(part, "list")] if row["engine"] == OURS]
        lists = sorted((row for row in lists if row["right"]), key=lambda row: row["amount"])
        amounts = [100 * row["amount"] for row in lists]
        times = [row["ms_min"] for row in lists]
        panel.plot(amounts, times, "o-", color="black", label=OURS, markersize=5)
        panel.set(xlabel="weights that are zero, %", ylabel="ms a window, minimum", yscale="log")
        panel.set_title(_title(part), fontsize=10, loc="left")
        panel.grid(alpha=0.3, which="both")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
