"""One function per question: it asks a Target, and passes what it has seen to a pure function that reads it."""
