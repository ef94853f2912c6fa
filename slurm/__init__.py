"""Batch scripts: run by hand, and filled in by `lacuna submit`."""
