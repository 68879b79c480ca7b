"""Files in host memory: maps, the page cache, readers and readahead. Law: opens files for reading only."""
