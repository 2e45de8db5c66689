"""Finetuned models as graphs for other runtimes: written, compared with the model, quantised, described."""
