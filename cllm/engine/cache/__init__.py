"""What the KV cache holds per slot, and how a prompt finds its longest cached prefix."""
