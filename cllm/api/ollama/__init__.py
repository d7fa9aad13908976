"""Ollama's API: chats, completions, vectors and the list of models, as its clients use them."""
