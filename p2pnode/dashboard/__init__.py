"""What people look at in a terminal: pure views, and the loop that shows them."""
