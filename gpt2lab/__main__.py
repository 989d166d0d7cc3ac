"""`python -m gpt2lab`: the command line."""

from gpt2lab.cli import main

main()
