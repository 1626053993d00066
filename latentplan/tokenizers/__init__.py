"""One tokenizer a file: what turns pictures into a few discrete tokens and back."""
