"""The slim model as transformers classes: decoders whose layers differ in width."""
