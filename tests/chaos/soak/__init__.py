"""An operator that is left alone for half an hour, with everything that happens to one."""
