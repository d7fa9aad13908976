"""Programs that record what the tests compare with."""
