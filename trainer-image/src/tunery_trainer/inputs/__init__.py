"""What a run brings to its disk: base model, data files and published adapters, wherever they lie."""
