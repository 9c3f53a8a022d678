"""What several rooms of serving need and what needs none of them."""
