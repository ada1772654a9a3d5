"""`mtactors doctor`: whether this machine can serve, and if not, what to do about it.

Looks at the host, computes known answers with every operation, and runs a tiny model. Knows no
server and no requests.
"""
