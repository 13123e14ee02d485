"""Trained policies; `nil_jax.load_pretrained` reads them."""
