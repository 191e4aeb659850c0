"""Pure decisions: no input or output, no clock, no randomness; all of these are passed in."""
