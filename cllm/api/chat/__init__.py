"""Conversations, whatever API they come from: to a prompt, and the model's text to events.

An API's own part is small: its request to a `Conversation`, events to its JSON, its error envelope.
"""
