"""Everything a peer decides: DHT, membership, exchanges, learning rules.

Pure: no I/O, no clocks, no randomness of its own.
"""
