"""Text -> language model -> cache: the only package that imports transformers or datasets."""
