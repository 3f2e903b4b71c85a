"""Built-in tasks; they use the same door as a user's own."""
