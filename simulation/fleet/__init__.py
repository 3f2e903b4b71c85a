"""The second engine: learning only, the whole network as one XLA program."""
