"""Training: the order of items (`order`), batches (`collate`), one stage on a backbone (`fit`)."""
