"""Files in host memory: maps, the page cache, readers and readahead."""
