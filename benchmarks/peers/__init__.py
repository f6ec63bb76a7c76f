"""One script for each peer, run by an interpreter of the peer's own environment.

What belongs here: how a peer is used, as its documentation says, and its pinned requirements. What
does not: measuring and comparing (the modules above).
"""
