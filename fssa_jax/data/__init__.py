"""People, texts and features: reading and splitting rows, tables of choices, built-in benchmarks."""
