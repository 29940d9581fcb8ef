"""One script a claim; results with hardware and versions in results/."""
