"""Speed of training on this machine, in comparable numbers: `vitp bench`, and the scripts of `benchmarks/`."""
