"""The adapter on its base: put on, trained on from a published one, saved so that plain PEFT loads it."""
