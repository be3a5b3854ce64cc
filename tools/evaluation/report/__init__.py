"""The report of an evaluation: results.json (`document`), report.html (`page`, of `blocks`), and `figures`."""
