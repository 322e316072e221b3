"""How `naturelm-small` is made: our audio encoder on SmolLM2, a language model of others."""
