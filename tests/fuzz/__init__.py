"""Commands on inputs that are wrong in a thousand ways: `python -m tests.fuzz --count 2000 --seed 0`.

seeds → mutate → cases → runner: small valid inputs, what may be wrong with them, a command line on the outcome, and a
process for it that is looked at from outside.
"""
