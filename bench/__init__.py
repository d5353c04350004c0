"""Comparisons with peers, interleaved in one run. `python -m bench.report` runs them all and prints the table."""
