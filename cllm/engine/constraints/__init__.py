"""What a text must be: schemas and grammars, compiled safely, and the tokens that they allow."""
