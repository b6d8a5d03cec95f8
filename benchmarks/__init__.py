"""What this provider promises in numbers, measured beside its peers. See README.md."""
