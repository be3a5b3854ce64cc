"""Files: written whole, cached, and read without trusting them."""
