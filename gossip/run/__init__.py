"""Taking part in runs: sessions, exchanges, manifests."""
