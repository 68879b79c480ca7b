"""Files in host memory: maps, arrays, the page cache, readers and readahead. Law: opens files for reading only."""
