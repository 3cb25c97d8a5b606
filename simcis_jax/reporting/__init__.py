"""The HTML report of a run: reading the run, computing statistics, drawing tables and charts."""
