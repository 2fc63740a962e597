"""One iteration of each search, put on the stream."""
