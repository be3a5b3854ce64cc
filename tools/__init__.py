"""Everything around the networks: data, training, evaluation, studies, and the command line."""
