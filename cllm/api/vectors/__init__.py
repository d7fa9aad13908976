"""Embeddings and reranking, which several APIs share."""
