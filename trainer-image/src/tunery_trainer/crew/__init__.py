"""The other processes of a run on several devices: how they are started, met, heard, and ended."""
