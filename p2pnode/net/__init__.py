"""What the daemon does with the network."""
