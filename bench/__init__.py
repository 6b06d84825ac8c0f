"""What it costs: benchmarks that `make bench` runs. Nothing here is a test."""
