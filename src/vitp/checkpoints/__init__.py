"""Weights in and out: the layouts in which vision towers and vision-language models are published.

hub → tensors → layouts → checkpoint → build      (in)
checkpoint → writing → checks                     (out: `convert`)
"""
