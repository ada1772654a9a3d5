"""The journal of an engine's steps: a ring of files that tells what workers were asked and said.

Knows the wire's messages and nothing of engines, processes or torch.
"""
