"""Constraints on a text: schemas and grammars, compiled safely, and the tokens they allow."""
