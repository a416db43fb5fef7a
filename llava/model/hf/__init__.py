"""The format of transformers' LlavaOnevisionForConditionalGeneration: read as one of ours, and written."""
