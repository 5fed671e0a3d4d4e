#!/usr/bin/env bash
# The tables of docs/results from the raw arrays (COST_DATA_DIR=DIR where they lie elsewhere). Hours on 2 CPU cores;
# a run that was cut goes on where it stopped. Extra flags go to the benchmark: --data_names SST --seeds 0 ...
[[ "$*" == *--data_names* ]] || needs_data=(MobileNJ Los_Speed BikeDC SST "$@")
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh" requirements-lock.txt

python -m scripts.paper.benchmark "$@"
python -m scripts.paper.collect_results
