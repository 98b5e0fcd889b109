"""The process that runs one model's tokenizer and chat template, which strangers wrote."""
