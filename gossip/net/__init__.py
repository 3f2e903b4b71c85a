"""Connections between nodes: what is decided about them before a message travels."""
