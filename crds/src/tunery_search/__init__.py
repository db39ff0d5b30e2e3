"""The search of a LoRASweep, pure: what is searched, what is known of its trials, and what is to be done next."""
