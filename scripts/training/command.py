"""What the training scripts share: their flags, and a process set up for training. Imports no torch."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# glibc returns and faults in pages anew for every large tensor; keeping them doubles the training speed.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**28),
}


def training_parser(description: str | None, stages: Sequence[str], run_dir: Path) -> argparse.ArgumentParser:
    """A parser of the flags of every training script."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=(*stages, "all"), default="all")
    parser.add_argument("--run-dir", type=Path, default=run_dir, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: %(default)s")
    return parser


def run_stages(arguments: argparse.Namespace, stages: Sequence[str], module: str) -> int:
    """Run the stages asked for, in order: `module.run(stage, arguments, device)`."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    import torch

    torch.set_num_threads(arguments.threads)
    # Activations far below zero leave numbers so small that the processor handles them in microcode.
    torch.set_flush_denormal(True)
    run = import_module(module).run
    for stage in stages if arguments.stage == "all" else (arguments.stage,):
        run(stage, arguments, torch.device(arguments.device))
    return 0
