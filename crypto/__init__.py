"""Identity, signatures and the secure channel. Standard library and PyNaCl only; no I/O."""
