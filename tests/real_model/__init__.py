"""Tests on a trained model with a vocabulary of 49 152 tokens and a ChatML template."""
