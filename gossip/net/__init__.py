"""Who is connected, how a node enters the network, and what two peers say first."""
