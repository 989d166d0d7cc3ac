"""How well a model predicts a text: protocols that say what is counted, one scorer for all of them, and where it is hard."""
