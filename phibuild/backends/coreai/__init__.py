"""The coreai backend: Core AI models (.aimodel) in Apple's bundle of a language model."""
