"""Connections: who is up, how frames share one, how fast it is, what two peers say first. No sockets."""
