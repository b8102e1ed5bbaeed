"""Export of a trained student: weights, model card and ONNX."""
