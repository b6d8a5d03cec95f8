"""Renders without a worker slot."""
