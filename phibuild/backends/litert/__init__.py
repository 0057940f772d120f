"""The litert backend: LiteRT models (.tflite) and LiteRT-LM bundles (.litertlm)."""
