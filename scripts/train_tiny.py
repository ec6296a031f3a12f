"""Train the embedded model of one shape from nothing: `python scripts/train_tiny.py`.

Stages: vae, transformer, classifier, export. Every stage writes to --run-dir, can be stopped at any moment
and goes on at its last checkpoint when started again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.command import run_stages, training_parser

STAGES = ("vae", "transformer", "classifier", "export")


def main() -> int:
    """Parse, then run the stages asked for, in order."""
    parser = training_parser(__doc__, STAGES, Path("runs/tiny"))
    return run_stages(parser.parse_args(), STAGES, "training.one_shape")


if __name__ == "__main__":
    sys.exit(main())
