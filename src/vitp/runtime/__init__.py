"""Exported task models without torch: numpy, onnxruntime and Pillow are all that it takes.

    from vitp.runtime.graph_model import open_graph

    model = open_graph("model.onnx")
    found = model.predict_file("image.png")

`python -m vitp.runtime MODEL.onnx IMAGE…` writes what is found as JSON and PNG. Nothing in this room imports another
one but errors and extras of `vitp.core`.
"""
