"""One short file for each data set, or for each thing that several of them share."""
