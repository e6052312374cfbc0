"""Documents become training items: found, read, tokenized, stored or streamed, and put in order."""
