"""The Tunery trainer: preflight, training and merging, in a pod or on a laptop."""
