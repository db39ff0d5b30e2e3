"""The other processes of a run on several devices: where each stands, how they are started, met, heard, and ended."""
