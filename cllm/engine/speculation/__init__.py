"""Drafts: tokens guessed from the text or by a draft model, and how many are worth a try."""
