"""A training program that any loader and source feeds: `python -m bench.train` (see README.md beside this file)."""
