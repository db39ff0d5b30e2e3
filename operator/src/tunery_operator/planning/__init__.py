"""Decide everything before anything is built: spec, settings and owner in, a frozen plan out."""
