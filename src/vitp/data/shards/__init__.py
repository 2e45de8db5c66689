"""Images and rows that are not plain files in a folder: tar shards (WebDataset), and storage behind a URL."""
