"""The studies main_theory.py, main_regularisation.py and main_coding.py.

A study has one name everywhere. main_<name>.py hands `cli.study` a function that maps the parsed arguments to
{experiment: function of a `study.Study`}. <name>/experiments.py has these functions: each measures, plots with
<name>/pictures.py, and returns what goes to results.json. docs/<name>.md presents the results; docs/quote.py
makes it from docs/src/<name>.md and docs/results/<name>.json, and tests/test_docs.py says when it is out of date.
"""
