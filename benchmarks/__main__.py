"""Run all benchmarks: ``python -m benchmarks [options of benchmarks.transfer]``. A quarter of an hour or more."""

from __future__ import annotations

import sys

from benchmarks import batch, cluster, import_cost, transfer, triggerer

if __name__ == "__main__":
    failed = import_cost.main([])
    failed |= transfer.main(sys.argv[1:])
    failed |= triggerer.main([])
    failed |= batch.main([])
    failed |= cluster.main([])
    sys.exit(failed)
