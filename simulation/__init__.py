"""Many peers in one process, on a simulated network, repeatable from a seed."""
