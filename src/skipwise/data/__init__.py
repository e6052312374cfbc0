"""From documents to training items: finding, reading, tokenizing, storing or streaming, and ordering."""
