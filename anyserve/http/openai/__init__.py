"""OpenAI's API: chats, completions and embeddings, served by capabilities."""
