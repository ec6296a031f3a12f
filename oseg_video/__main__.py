"""The command `oseg-video`, and `python -m oseg_video`: signals are heeded first, then it is imported."""

import io
import os
import signal
import sys

from oseg_video.interrupts import heeded


def main() -> int:
    """Run the command with the arguments of this process; returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: print would take the other, an opened file its number
            setattr(sys, name, open(os.devnull, "w"))
    try:
        with heeded():
            if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
                sys.stdout.reconfigure(errors="backslashreplace")
            from oseg_video.cli import main as run

            return run()
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print("oseg-video: interrupted; finished clips are kept", file=sys.stderr)
        return 130
    finally:  # what the interpreter still does takes a moment, and would answer with a traceback
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    # The working directory is no place for modules, but where the package itself is in it.
    if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
        del sys.path[0]
    sys.exit(main())
