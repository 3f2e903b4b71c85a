"""Finding peers: a Kademlia-style DHT as pure state machines."""
