"""Work directories, and the implementations of the programs."""
