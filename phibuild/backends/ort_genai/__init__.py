"""ONNX models with genai_config.json, by the model builder of onnxruntime-genai."""
