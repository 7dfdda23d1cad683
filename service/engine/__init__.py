"""Code that runs inside a vLLM child, loaded by vLLM through its plugin entry points."""
