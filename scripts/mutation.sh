#!/usr/bin/env bash
# How strong are the tests? mutmut changes one expression at a time in a room of the package and runs the tests of
# that room: a change that no test notices survives. By hand: it takes minutes for a file and hours for a room.
#
#   scripts/mutation.sh guidance                     # all of oseg_video/guidance, by tests/unit/guidance
#   scripts/mutation.sh guidance smoothing combine   # two files of it
#   TESTS="tests/unit/parallel tests/distributed" scripts/mutation.sh parallel
#
# Works in build/mutation, and the same command goes on where it was stopped. `cd build/mutation && ../../.venv/bin/mutmut
# show NAME` shows a survivor.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ] || [ ! -d "oseg_video/$1" ]; then
  sed -n '5,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
room=$1
shift
python=${PYTHON:-$PWD/.venv/bin/python}
"$python" -c "import mutmut" 2> /dev/null || "$python" -m pip install --quiet --disable-pip-version-check mutmut==3.8.1

mkdir -p build/mutation
for part in oseg_video tests scripts configs; do
  rm -rf "build/mutation/$part"
  cp -r "$part" build/mutation/
done
quoted() { # words as a list of TOML
  printf '"%s", ' "$@"
}
cat pyproject.toml - > build/mutation/pyproject.toml << TOML

[tool.mutmut]
source_paths = ["oseg_video"]
also_copy = ["scripts", "configs"]
only_mutate = [$(quoted $(printf "oseg_video/$room/%s.py " "${@:-*}"))]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:randomly"]
pytest_add_cli_args_test_selection = [$(quoted ${TESTS:-tests/unit/$room})]
# torch's threads do not live through a fork.
process_isolation = "forkserver"
TOML
cd build/mutation
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONHASHSEED=0
"$python" -m mutmut run --max-children "${PROCESSES:-$(nproc)}"
"$python" -m mutmut results
