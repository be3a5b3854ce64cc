"""Files: written whole, cached, read without trust."""
