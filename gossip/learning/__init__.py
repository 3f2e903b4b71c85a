"""Learning rules and the one owner of the weights."""
