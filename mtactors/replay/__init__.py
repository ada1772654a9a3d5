"""Executes the steps of a journal once more, and compares what comes out.

A front of its own kind: it speaks to a worker group and has no scheduler. Knows nothing of torch.
"""
