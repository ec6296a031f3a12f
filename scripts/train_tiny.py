"""Train the embedded model from nothing: `python scripts/train_tiny.py`.

Stages: vae, transformer, classifier, export. Every stage writes to --run-dir, can be stopped at any moment
and goes on at its last checkpoint when started again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

STAGES = ("vae", "transformer", "classifier", "export")

# glibc returns and faults in pages anew for every large tensor; keeping them doubles the training speed.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**28),
}


def main() -> int:
    """Parse, then run the stages asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/tiny"), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: %(default)s")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    import torch

    torch.set_num_threads(arguments.threads)
    # Activations far below zero leave numbers so small that the processor handles them in microcode.
    torch.set_flush_denormal(True)
    from oseg_video.embedded.training import stages

    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        stages.run(stage, arguments.run_dir, torch.device(arguments.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
