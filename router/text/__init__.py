"""Text: tokenizers, chat templates, detokenization, stop strings."""
