"""From the files of a data set to rows of tokens that are ready to train on."""
