"""Studies are grids of pretraining runs, downstream tests and seeds: declared once, run in any order, one page each."""
