"""The command line's work: composing, defaults, checking, handing a configuration to its recipe."""
