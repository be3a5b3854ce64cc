"""The pages of the documentation, and `quote`, which fills results into them."""
