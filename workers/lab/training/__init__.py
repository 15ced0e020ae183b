"""Training: one loop, the recipes, and where weights and their facts are written."""
