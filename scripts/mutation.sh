#!/usr/bin/env bash
# How strong are the tests? mutmut changes one expression at a time in a room of the package and runs the tests that
# reach it: a change that no test notices survives. By hand: seconds for a change, of which a room has thousands.
#
#   scripts/mutation.sh guidance                     # all of oseg_video/guidance, by tests/unit/guidance
#   scripts/mutation.sh guidance smoothing combine   # two files of it
#   SAMPLE=100 SEED=1 scripts/mutation.sh guidance   # 100 of its changes, drawn at random
#   SAMPLE=50 WHOLE=1 TESTS="tests/distributed/test_parity.py" scripts/mutation.sh parallel   # what only ranks run
#
# Works in build/mutation/ROOM, and the same command goes on where it was stopped (with WHOLE it begins anew). There,
# `mutmut show NAME` shows a survivor. Tests with "compile" in their name are left out: torch.compile does not trace what
# mutmut writes. mutmut does not see what ranks run, in processes of their own, nor what runs while a module is imported;
# with WHOLE, every drawn change gets a pytest of its own, with all of TESTS, until the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ] || [ ! -d "oseg_video/$1" ]; then
  sed -n '5,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
room=$1
shift
python=${PYTHON:-$PWD/.venv/bin/python}
"$python" -c "import mutmut" 2> /dev/null || "$python" -m pip install --quiet --disable-pip-version-check mutmut==3.8.1

folder=build/mutation/$room
mkdir -p "$folder"
for part in oseg_video tests scripts configs .github README.md; do
  rm -rf "${folder:?}/$part"
  cp -r "$part" "$folder/"
done
quoted() { # words as a list of TOML
  printf '"%s", ' "$@"
}
files=("${@:-*}")
files=("${files[@]/#/oseg_video/$room/}")
files=("${files[@]/%/.py}") # the room's own and those of its rooms: a star is mutmut's, not the shell's
cat pyproject.toml - > "$folder/pyproject.toml" << TOML

[tool.mutmut]
source_paths = ["oseg_video"]
also_copy = ["scripts", "configs", ".github", "README.md"]
only_mutate = [$(quoted "${files[@]}")]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:randomly", "-k", "not compile"]
pytest_add_cli_args_test_selection = [$(quoted ${TESTS:-tests/unit/$room})]
# torch's threads do not live through a fork.
process_isolation = "forkserver"
TOML
cd "$folder"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONHASHSEED=0
names=()
if [ -n "${SAMPLE:-}" ]; then
  # A name that fits nothing: the changes are written, none is tried.
  "$python" -m mutmut run --max-children 1 none > /dev/null || true
  mapfile -t names < <("$python" - "$SAMPLE" "${SEED:-0}" << 'PYTHON'
import json
import random
import sys
from pathlib import Path

count, seed = map(int, sys.argv[1:])
found = [name for path in Path("mutants").rglob("*.meta") for name in json.loads(path.read_text())["exit_code_by_key"]]
random.seed(seed)
print(*random.sample(sorted(found), min(count, len(found))), sep="\n")
PYTHON
)
fi
if [ -n "${WHOLE:-}" ]; then
  cd mutants
  for name in "${names[@]}"; do
    tests="$python -m pytest -x -q -p no:cacheprovider ${TESTS:-tests/unit/$room}"
    if MUTANT_UNDER_TEST=$name $tests -k "not compile" > ../last.log 2>&1; then
      echo "$name: survived"
    else
      echo "$name: killed"
    fi
  done
  exit
fi
"$python" -m mutmut run --max-children "${PROCESSES:-$(nproc)}" "${names[@]}"
"$python" -m mutmut results --all true
