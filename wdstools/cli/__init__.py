"""The commands: one file each, thin. They parse, build one value, call the library, print."""
