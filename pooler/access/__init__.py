"""Who may log in, and how it is proven: the Gate, the proofs it asks for, and where secrets are looked up."""
