"""A local server that speaks the providers' wire protocols, with their limits, faults and prices.

What lives here: everything of the simulator; it imports no other room. `launch` starts and finds
one and is cheap to import; `server` and `bench` are imported only by the process that serves.
"""
