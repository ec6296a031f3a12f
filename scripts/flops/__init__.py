"""Counted FLOPs and traffic of guided steps, on tensors without values; what the benchmarks count with."""

from flops.count import StepCost, run_step, step_cost

__all__ = ["StepCost", "run_step", "step_cost"]
