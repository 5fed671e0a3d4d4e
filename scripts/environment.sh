# Sourced by demo.sh and test.sh: go to the repository root, have an environment, have the packages.
# Uses the active virtual environment, else .venv, which is made when absent. Arguments: the lock files to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    if [ ! -e .venv/bin/activate ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
        "${PYTHON:-python3}" -m venv .venv
    fi
    . .venv/bin/activate
fi

installed="$(python -c 'import sys; print(sys.prefix)')/cost-$(cat "$@" | cksum | tr ' ' -)"
if [ ! -e "$installed" ]; then
    echo "installing packages from $*"
    python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    touch "$installed"
fi
