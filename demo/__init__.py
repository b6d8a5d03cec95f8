"""What ``make demo`` and ``make up`` run: the example DAGs on this machine, with no key and no spend."""
