"""Speed and memory (`bench_*.py`), and what the tests catch (`mutation.py`): scripts that print JSON lines."""
