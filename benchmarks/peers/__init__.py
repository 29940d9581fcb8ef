"""What runs beside the benchmarks: programs for other interpreters, and how they are called."""
