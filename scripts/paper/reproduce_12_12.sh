#!/usr/bin/env bash
# The tables of docs/results from the raw arrays (COST_DATA_DIR=DIR where they lie elsewhere). Days on 2 CPU
# cores, hours for the default alone (--methods cost); an interrupted run resumes. Extra flags go to the benchmark.
[[ "$*" == *--data_names* ]] || needs_data=(MobileNJ Los_Speed BikeDC SST "$@")
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh" requirements-lock.txt

python -m scripts.paper.benchmark "$@"
python -m scripts.paper.collect_results
