"""Work directories, and the bodies of programs."""
