"""The runs of the ViTP paper (arXiv 2509.17562): two pretraining mixtures, sixteen downstream benchmarks."""
