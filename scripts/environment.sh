# Sourced by demo.sh and test.sh: makes or reuses .venv and installs the package into it.
# `extras` is set by the caller: "" or "[dev]". Does nothing when pyproject.toml, the constraints and the
# Python version are as at the last time. PYTHON names another interpreter than python3 to make .venv with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

required=$(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
serves() { # a Python new enough, with the modules named
  "$1" -c "import sys$2; sys.exit(sys.version_info < (${required/./, }))" 2> /dev/null
}
python=.venv/bin/python
# A .venv that another Python has made, that a new Python of the system has broken, or that was left half-made
# has no pip for the Python it runs.
if ! serves "$python" ", pip"; then
  base=${PYTHON:-python3}
  if ! serves "$base" ""; then
    version=$("$base" -V 2>&1 || true)
    echo "error: needs Python $required or newer, $base is ${version:-not there};" \
      "name another one with PYTHON=python3.12 $0" >&2
    exit 1
  fi
  "$base" -m venv --clear .venv || {
    rm -rf .venv
    exit 1
  }
fi
stamp=.venv/oseg-video-installed
state="$("$python" -V) $(cat pyproject.toml scripts/constraints.txt | sha256sum | cut -d' ' -f1)"
# The developer's installation contains the user's.
if ! grep -qsxF "$state $extras" "$stamp" && ! { [ -z "$extras" ] && grep -qsxF "$state [dev]" "$stamp"; }; then
  "$python" -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ".$extras"
  echo "$state $extras" > "$stamp"
fi
