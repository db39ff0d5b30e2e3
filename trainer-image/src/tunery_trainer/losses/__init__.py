"""What training minimises, and how a model is measured by it: objectives, head, evaluation."""
