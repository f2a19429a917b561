"""People, texts and features: rows read, split, tabled; benchmarks of our own."""
