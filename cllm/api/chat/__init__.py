"""Conversations of every API: from messages to a prompt, from the model's text to events.

An API adds only: its request to a `Conversation`, events to its JSON, its error envelope.
"""
