"""Speed and memory: scripts that print one JSON line for each result."""
