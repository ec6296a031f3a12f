"""Train the model of two shapes, from the one-shape model in the package: `python scripts/train_two.py`.

Stages: judge, transformer, decoder, export. Every stage writes to --run-dir, can be stopped at any moment
and goes on at its last checkpoint when started again. The transformer's learning rate is constant but for the
last steps: train with the default --steps for as long as you like, then give the step at which to end.

Two more stages are run by name: pack writes the transformer's state small enough to be kept (--packed), and
unpack starts a run directory from it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.command import run_stages, training_parser

STAGES = ("judge", "transformer", "decoder", "export")


def main() -> int:
    """Parse, then run the stages asked for, in order."""
    parser = training_parser(__doc__, (*STAGES, "pack", "unpack"), Path("runs/two"))
    parser.add_argument("--steps", type=int, help="step at which the transformer's training ends")
    parser.add_argument("--seed", type=int, help="seed of the transformer's data and noise, for a second run")
    parser.add_argument("--packed", type=Path, help="file that pack writes and unpack reads")
    parser.add_argument(
        "--kept", type=Path, help="averaged weights of an earlier step for export, in place of the last"
    )
    parser.add_argument(
        "--clips", type=int, default=128, help="clips that export judges (default: %(default)s)"
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0, 1.5, 2.0, 3.0],
        help="guidance scales that export judges",
    )
    arguments = parser.parse_args()
    if arguments.stage in ("pack", "unpack") and arguments.packed is None:
        parser.error(f"--stage {arguments.stage} needs --packed")
    return run_stages(arguments, STAGES, "training.two_shapes")


if __name__ == "__main__":
    sys.exit(main())
