"""The parts of benchmarks/chaos.py: what a server is put through, and what must be left of it."""
