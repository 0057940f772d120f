"""Graphs and context binaries for Qualcomm's NPU (HTP), by ONNX Runtime's QNN provider."""
