"""The indexes of other tools, written from an index and read into one: one module a format, `formats` has them all."""
