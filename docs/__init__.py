"""The pages of the documentation, `quote`, which makes those with numbers, and `conf`, of which Sphinx makes a site."""
