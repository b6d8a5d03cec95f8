"""Renders as decorated functions."""
