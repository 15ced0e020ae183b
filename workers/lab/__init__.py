"""How the built-in models came about: the drawn world, training, evaluation. Not needed to serve them."""
