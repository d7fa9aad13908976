"""The Anthropic endpoints: messages and the count of their tokens.

Source: the Anthropic API reference. Field names and the order of events follow it.
"""
