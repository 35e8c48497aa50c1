"""What ships to the edge: bundle, preprocessing, prompt, engines, generation. No torch here."""
