"""What the KV cache holds of each slot, and how a prompt finds what it begins with."""
