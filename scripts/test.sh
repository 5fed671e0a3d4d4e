#!/usr/bin/env bash
# All tests; extra arguments go to pytest, e.g. `bash scripts/test.sh tests/test_metrics.py -k crps`.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-lock.txt requirements-dev-lock.txt

python -m ruff check .
exec python -m pytest "$@"
