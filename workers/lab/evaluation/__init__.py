"""How good the models are: measured from outside, by a judge that is none of them."""
