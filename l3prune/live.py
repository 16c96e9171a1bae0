"""python -m l3prune.live: which sounds are heard now, in a terminal or on a local page."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from l3prune import views
from l3prune.errors import L3PruneError, ParameterError, command
from l3prune.streaming import FileSource, Heard, Listener, MicrophoneSource

if TYPE_CHECKING:
    from l3prune.labels import Tracker
    from l3prune.tagging import Tagger

#: Seconds of sound that are tagged, the last that came in.
WINDOW = 2.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.live",
        usage="%(prog)s [FILE] --model FILE [options]",
        allow_abbrev=False,
        description=f"Which sounds are heard now: the last {WINDOW:g} seconds are tagged again and "
        "again, as fast as the machine can.",
        epilog="It ends with the file, or by Ctrl-C, and tells how fast it was; a page by Ctrl-C. "
        "Exit code: 0 ended, 2 wrong arguments, or the source cannot be listened to.",
    )
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="a recording (default: the microphone)")
    views.add_options(parser, top_k=5)
    add(
        "--fast",
        action="store_true",
        help="take FILE as fast as it is tagged, a window every 0.5 s, instead of playing it",
    )
    add("--loop", action="store_true", help="play FILE again and again")
    add("--device", metavar="NAME", help="microphone: its number, or a part of its name")
    add("--web", action="store_true", help="show a page at 127.0.0.1, where it is started")
    add("--port", type=int, metavar="N", help="of the page (8527); 0: any free one")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `python -m l3prune.live --help`."""
    args = _parser().parse_args(argv)
    if args.port is not None and not args.web:
        raise ParameterError("--port is for --web")
    if args.port is not None and not 0 <= args.port < 2**16:
        raise ParameterError(f"--port {args.port} is not in 0 … 65535")
    source = _source(args)
    source.check()
    tagger, tracker = views.load(args)
    listener = _listener(source, tagger)
    if args.web:
        return _serve(listener, tracker, args)
    return _show(listener, tracker, args.top_k)


def _source(args: argparse.Namespace) -> FileSource | MicrophoneSource:
    if args.file is not None:
        if args.device is not None:
            raise ParameterError("--device is for the microphone, and FILE is given; leave one out")
        return FileSource(args.file, fast=args.fast, loop=args.loop)
    for flag in ("fast", "loop"):
        if getattr(args, flag):
            raise ParameterError(f"--{flag} is for FILE, and none is given")
    device = args.device
    return MicrophoneSource(int(device) if device and device.isdecimal() else device)


def _listener(source: FileSource | MicrophoneSource, tagger: Tagger) -> Listener:
    size = tagger.samples or round(WINDOW * tagger.sample_rate)

    def compute(window: np.ndarray) -> np.ndarray:
        return tagger.compute(window[np.newaxis])[0][0]

    compute(np.zeros(size, np.float32))  # the first time takes longer
    return Listener(source, tagger.sample_rate, size, compute)


def _show(listener: Listener, tracker: Tracker, top_k: int) -> int:
    """Show what is heard in the terminal until the source ends, or Ctrl-C."""
    draw = _redraw if sys.stdout.isatty() else _write
    version, windows, drawn = -1, 0, 0
    listener.start()
    try:
        heard = Heard("listening")
        while heard.state == "listening":
            version, heard = listener.wait(version)
            if heard.scores is not None and heard.windows > windows:
                windows = heard.windows
                title = f"{listener.source.name}  {heard.seconds:.1f} s"
                drawn = draw(title, tracker.top(heard.scores, top_k), drawn)
    except KeyboardInterrupt:
        heard = listener.stop()
    if heard.state == "failed":
        raise L3PruneError(heard.error)
    print(_summary(heard, listener))
    return 0


def _redraw(title: str, top: Sequence[tuple[str, float]], drawn: int) -> int:
    """Draw over the lines that were drawn before; gives how many there are now."""
    width, height = shutil.get_terminal_size()
    blocks = views.can_show_blocks(sys.stdout.encoding)
    # What has left the screen cannot be drawn over.
    shown = [title[:width], *views.lines(top, width, blocks=blocks)][: max(height - 1, 1)]
    up = f"\x1b[{drawn}F" if drawn else ""
    print(up + "\x1b[J" + "\n".join(shown), flush=True)
    return len(shown)


def _write(title: str, top: Sequence[tuple[str, float]], drawn: int) -> int:
    """A line for a window, where nothing can be drawn over."""
    print(f"{title}  {', '.join(f'{name} {score:.3f}' for name, score in top)}", flush=True)
    return drawn


def _summary(heard: Heard, listener: Listener) -> str:
    if not heard.windows:
        return "nothing was tagged"
    each, long = heard.computing / heard.windows, listener.size / listener.rate
    return (
        f"{heard.windows} windows of {long:g} s in {heard.elapsed:.1f} s, "
        f"{heard.windows / heard.elapsed:.1f} a second; {each * 1000:.0f} ms each, "
        f"real-time factor {each / long:.3f}"
    )


def _serve(listener: Listener, tracker: Tracker, args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from l3prune.web import PORT, Page

    page = Page(listener, tracker, args.top_k, PORT if args.port is None else args.port)
    print(f"{page.address}  (Ctrl-C ends it)", flush=True)
    try:
        page.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        page.server_close()
    print(_summary(listener.stop(), listener))
    return 0


if __name__ == "__main__":
    sys.exit(main())
