"""How the built-in story model is made: corpus, tokenizer, training, export, evaluation."""
