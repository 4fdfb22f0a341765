"""What becomes a repository on the Hub: card, push, bundle."""
