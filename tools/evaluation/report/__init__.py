"""The report of an evaluation: report.html (`page`) and its pictures (`figures`)."""
