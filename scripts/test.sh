#!/usr/bin/env bash
# Install what is missing, then run linters, type checker, import contract and tests.
# Further arguments go to pytest: scripts/test.sh tests/unit -k naming
# --quick, as the first argument: of the tests the quick unit tests only.
set -euo pipefail
extras="[dev]"
. "$(dirname "$0")/environment.sh"
if [ "${1-}" = --quick ]; then
  shift
  set -- tests/unit -m "not slow" "$@"
fi

run() {
  echo "== $*"
  "$@"
}
run .venv/bin/ruff check .
run .venv/bin/ruff format --check .
run .venv/bin/mypy
run .venv/bin/lint-imports
# No test may reach for the hub. The tests' models are so small that threads only cost, so processes share
# the files instead, one a core; the last -n wins. Files go out in the order of their names, which leaves the
# short ones for the end.
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 run .venv/bin/python -m pytest -n logical --maxprocesses 8 --dist loadfile \
  --no-loadscope-reorder "$@"
