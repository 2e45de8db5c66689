"""Studies: grids of pretraining runs, downstream tests and seeds, declared once, run in any order, shown as one page."""
