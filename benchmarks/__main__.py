"""Run all benchmarks: ``python -m benchmarks [options of benchmarks.transfer]``."""

from __future__ import annotations

import sys

from benchmarks import import_cost, transfer

if __name__ == "__main__":
    failed = import_cost.main([])
    failed |= transfer.main(sys.argv[1:])
    sys.exit(failed)
