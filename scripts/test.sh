#!/usr/bin/env bash
# All tests, one process for each core; extra arguments go to pytest instead: `bash scripts/test.sh tests/test_metrics.py`.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-lock.txt requirements-dev-lock.txt

python -m ruff check .
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
[ $# -gt 0 ] || set -- -n auto --maxprocesses 8 --dist loadfile
exec python -m pytest "$@"
